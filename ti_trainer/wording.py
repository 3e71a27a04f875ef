"""Words for people. Knows no page and no command."""

from __future__ import annotations

import shlex
import subprocess
import sys


def counted(count: int, what: str) -> str:
    """'1 image', '2 images'; `what` is a noun that takes an s."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def pip_install(*requirements: str, python: str = "") -> str:
    """The command that installs packages, for this Python if no other is named, quoted for a shell."""
    command = [python or sys.executable, "-m", "pip", "install", *requirements]
    return subprocess.list2cmdline(command) if sys.platform == "win32" else shlex.join(command)
