"""Install what TI Trainer needs. It has three uses.

python install.py              what the AUTOMATIC1111 WebUI runs at start, in its own Python: adds the few packages that
                               the WebUI does not bring, and moves none of those that are there
python install.py run [ARGS]   everyone else: sets up .venv beside this file once, then runs `python -m ti_trainer ARGS`
python install.py test [ARGS]  the same with what the tests need, then runs `python -m pytest ARGS`
"""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import deque
from hashlib import sha256
from pathlib import Path

EXTRAS = ("matplotlib",)  # needed beyond the WebUI's own packages; each is imported and installed under one name
REQUIREMENTS = {"run": ["requirements.txt"], "test": ["requirements.txt", "requirements-test.txt"]}  # each includes the last
WINDOWS = sys.platform == "win32"

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / ("Scripts/python.exe" if WINDOWS else "bin/python")
STAMP = VENV / "ti-trainer-installed"  # written last: holds the digest of what was installed
# `python -m ti_trainer` without the user's folder in sys.path: a numpy.py there must not be imported (3.10 lacks -P).
RUN = """import sys; sys.path[:] = filter(None, sys.path)
import runpy; runpy.run_module("ti_trainer", run_name="__main__", alter_sys=True)"""
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
ENVIRONMENT["TI_TRAINER_PROGRAM"] = "python install.py run"  # for what it tells users to type


def main(arguments: list[str]) -> int:
    """Do what the first argument says; the others belong to the program that is run."""
    if sys.version_info < (3, 10):
        found = ".".join(map(str, sys.version_info[:3]))
        sys.exit(f"TI Trainer needs Python 3.10 or newer, and this is {found} ({sys.executable}): run it with a newer one.")
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a path may hold what a Windows console cannot show
    command, *rest = arguments or [""]
    if not command:
        add_missing_to_host()
    elif command == "run":
        set_up("run")
        return hand_over(["-c", RUN, *rest], Path.cwd())
    elif command == "test":
        set_up("test")
        return hand_over(["-m", "pytest", *rest], ROOT)
    elif command in ("-h", "--help", "help"):
        print(__doc__.strip())
    else:
        say(f"install.py has no {command!r}: it takes `run`, `test` or nothing.\n\n{__doc__.strip()}")
        return 2
    return 0


def add_missing_to_host() -> None:
    """Install the extras that this Python lacks, holding every package that it has at its version."""
    missing = [name for name in EXTRAS if importlib.util.find_spec(name) is None]
    if not missing:
        return
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as folder:
        installed = Path(folder, "installed.txt")
        result = subprocess.run([*pip, "list", "--format=freeze"], capture_output=True)
        if result.returncode == 0:  # without this list nothing would hold the host's packages
            installed.write_bytes(result.stdout)
            options = ["--quiet", "--prefer-binary", "--constraint", str(installed)]
            result = subprocess.run([*pip, "install", *options, *missing], capture_output=True)
    if result.returncode:
        said = result.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {result.returncode}"]
        sys.exit(f"TI Trainer could not install {', '.join(missing)}; the next start tries again. pip says: {said[-1]}")
    print(f"TI Trainer: installed {', '.join(missing)}.")


def set_up(kind: str) -> None:
    """Make .venv hold the requirements of `kind`; at once when it already does."""
    enough = list(REQUIREMENTS)[list(REQUIREMENTS).index(kind) :]
    if VENV_PYTHON.exists() and STAMP.exists() and STAMP.read_text() in map(digest, enough):
        return
    STAMP.unlink(missing_ok=True)
    requirements = REQUIREMENTS[kind][-1]
    try:
        if not usable():
            make_venv()
        say(
            f"Setting up {VENV}: installing {requirements}. The first time takes minutes and about 400 MB of downloads,\n"
            "or several GB on Linux, where torch comes with CUDA. Later starts are immediate."
        )
        execute([str(VENV_PYTHON), "-m", "pip", "install", "-r", str(ROOT / requirements)])
    except KeyboardInterrupt:
        say("Interrupted: .venv is not complete. The same command again goes on from here.")
        sys.exit(130)
    STAMP.write_text(digest(kind))
    say("Setting up .venv: done.")


def digest(kind: str) -> str:
    """Name what an installation depends on: the Python, and the files that list the packages."""
    parts = [sys.implementation.cache_tag.encode(), *((ROOT / name).read_bytes() for name in REQUIREMENTS[kind])]
    return sha256(b"\0".join(parts)).hexdigest()


def usable() -> bool:
    """Whether .venv is of this Python and has pip: not so if it was interrupted, or its Python has gone."""
    if not VENV_PYTHON.exists():
        return False
    code = "import sys, pip; print(sys.implementation.cache_tag)"
    answer = subprocess.run([VENV_PYTHON, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    return answer.stdout.strip() == sys.implementation.cache_tag


def make_venv() -> None:
    """Create .venv anew with this Python."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if importlib.util.find_spec("ensurepip") is None:
        sys.exit(
            f"This Python ({sys.executable}) lacks ensurepip, so it cannot set up .venv.\n"
            f"On Debian and Ubuntu: sudo apt install python{version}-venv. Then run the same command again."
        )
    say(f"Setting up .venv: making it with Python {version}.")
    execute([sys.executable, "-m", "venv", "--clear", str(VENV)])


def execute(command: list[str]) -> None:
    """Run a step of the set-up, showing its large downloads; if it fails, exit with its last words and what to do."""
    last_words = deque(maxlen=12)
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    with subprocess.Popen(command, env=ENVIRONMENT, cwd=ROOT, **pipe) as step:
        for line in step.stdout:
            last_words.append(line)
            if re.search(r"Downloading .*[MG]B\)", line):
                say("  " + line.strip())
    if step.returncode:
        sys.exit(
            f"{''.join(last_words)}\nSetting up .venv failed: exit code {step.returncode}, and the words above, come from\n"
            f"  {subprocess.list2cmdline(command)}\n"
            "Check the network and the space on the disk. 'No matching distribution' may mean that this Python is too new:\n"
            f"3.10 to 3.13 work, this is {sys.version.split()[0]}. Then run the same command again: it goes on from here."
        )


def say(text: str) -> None:
    """Progress goes to stderr: stdout belongs to the program that is run."""
    print(text, file=sys.stderr, flush=True)


def hand_over(arguments: list[str], folder: Path) -> int:
    """Become .venv's Python in `folder`; on Windows, which cannot, wait for it and return its exit code."""
    command = [str(VENV_PYTHON), *arguments]
    os.chdir(folder)
    if not WINDOWS:
        os.execve(command[0], command, ENVIRONMENT)  # Ctrl-C, kill and the exit code are the program's own
    signal.signal(signal.SIGINT, lambda *_: None)  # the program gets the Ctrl-C as well: we wait for how it ends
    return subprocess.Popen(command, env=ENVIRONMENT).wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
