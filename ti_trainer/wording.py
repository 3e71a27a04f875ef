"""Phrases for messages."""

from __future__ import annotations

import shlex
import subprocess
import sys


def counted(count: int, what: str) -> str:
    """A count with a noun: '1 image', '2 images'."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def encodable(text: str) -> str:
    """The text with escapes for what UTF-8 cannot encode, as names of files may have it: a page could not be sent."""
    return text.encode("utf-8", "backslashreplace").decode()


def printable(text: str) -> str:
    """The text in one line, with escapes for control characters, which a terminal would obey."""
    text = " ".join(text.split())
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def pip_install(*requirements: str, python: str = "") -> str:
    """A shell command that installs packages, by default for this Python."""
    command = [python or sys.executable, "-m", "pip", "install", *requirements]
    return subprocess.list2cmdline(command) if sys.platform == "win32" else shlex.join(command)
