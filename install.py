"""Install what TI Trainer needs. It has three uses.

python install.py              what the AUTOMATIC1111 WebUI runs at start, in its own Python: adds the few packages that
                               the WebUI does not bring, and moves none of those that are there
python install.py run [ARGS]   everyone else: sets up .venv beside this file once, then runs `python -m ti_trainer ARGS`
python install.py test [ARGS]  the same with what the tests need, then runs `python -m pytest ARGS`; beside it the tests of
                               the WebUI's side once more, under the WebUI's own packages, in .venv-webui
"""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from hashlib import sha256
from pathlib import Path

# Needed beyond the WebUI's own packages; each is imported and installed under one name.
EXTRAS = ("imagehash", *(() if sys.version_info >= (3, 11) else ("tomli",)))  # later Pythons have their own
REQUIREMENTS = {  # the last one is installed, and includes those before it
    "run": ["requirements.txt"],
    "test": ["requirements.txt", "requirements-test.txt"],
    "webui": ["requirements-webui.txt"],
}
ALONE = {"webui": ["stable-diffusion-sdkit==2.1.5"]}  # installed without what it asks for: old packages that `ldm` can miss
PAGE_TESTS = "tests/ui"
WEBUI_TESTS = ("tests/hosts/webui", PAGE_TESTS)
WEBUI_PYTHONS = ((3, 10), (3, 11))
NOTHING_COLLECTED = 5  # pytest's exit code
WINDOWS = sys.platform == "win32"

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
VENV_WEBUI = ROOT / ".venv-webui"
PROGRAM = "Scripts/python.exe" if WINDOWS else "bin/python"  # in an environment
STAMP = "ti-trainer-installed"  # in an environment, written last: holds the digest of what was installed
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
        return test(rest)
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


def test(arguments: list[str]) -> int:
    """Run pytest in .venv, beside it the WebUI's side in .venv-webui; the first exit code that is not 0.

    Where no tests are named, those of the page come after the WebUI's side, which takes less long than the rest. What is
    run beside the first is heard after it.
    """
    set_up("test")
    theirs = webui_arguments(arguments)
    if theirs is not None:
        set_up("webui", VENV_WEBUI)
    os.chdir(ROOT)
    if theirs is None:
        code, interrupted = wait_for(VENV, ["-m", "pytest", *arguments])
        return code or 130 * interrupted
    ENVIRONMENT.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 2) // 2)))
    parts = [("Once more under the WebUI's own packages (.venv-webui):", VENV_WEBUI, theirs)]
    if not any(inside("tests", each) for each in arguments):
        parts.append(("The page under our own packages (.venv):", VENV, [PAGE_TESTS, *arguments]))
        arguments = [f"--ignore={PAGE_TESTS}", *arguments]
    with tempfile.TemporaryDirectory() as folder:
        beside = Beside(Path(folder), parts)
        beside.start()
        code, interrupted = wait_for(VENV, ["-m", "pytest", *arguments], beside)
        if interrupted:
            beside.terminate()
            beside.join()
            return code or 130
        return next((each for each in (code, *beside.repeat()) if each), 0)


class Beside(threading.Thread):
    """Runs of pytest, each a heading, an environment and arguments, one after the other; they speak into files."""

    def __init__(self, folder: Path, parts: list[tuple[str, Path, list[str]]]) -> None:
        """The folder is for what they say."""
        super().__init__()
        self.parts, self.codes, self.stopped, self.program = parts, [], False, None
        self.words = [folder / str(number) for number in range(len(parts))]
        for each in self.words:
            each.touch()

    def run(self) -> None:
        """What is asked of a thread."""
        for (_, venv, arguments), words in zip(self.parts, self.words, strict=True):
            command = [str(python_of(venv)), "-m", "pytest", *arguments]
            with words.open("wb") as said:
                pipe = {"stdin": subprocess.DEVNULL, "stdout": said, "stderr": subprocess.STDOUT}
                with subprocess.Popen(command, env=ENVIRONMENT, **pipe) as self.program:
                    if self.stopped:
                        self.program.terminate()
            self.codes.append(exit_code(self.program))
            if self.stopped:
                return

    def terminate(self) -> None:
        """End the one that runs, and begin none."""
        self.stopped = True
        if self.program is not None:
            self.program.terminate()

    def repeat(self) -> list[int]:
        """Say what each says, from its beginning until it ends; their exit codes, 0 where there was nothing to do."""
        for number, ((heading, *_), words) in enumerate(zip(self.parts, self.words, strict=True)):
            say(f"\n{heading}")
            with words.open("rb") as said:
                ended = False
                while not ended:
                    ended = len(self.codes) > number or not self.is_alive()
                    sys.stdout.buffer.write(said.read())
                    sys.stdout.flush()
                    time.sleep(0 if ended else 0.2)
        return [0 if code == NOTHING_COLLECTED else code for code in self.codes]


def exit_code(program: subprocess.Popen) -> int:
    """As a shell says that a signal ended it."""
    return program.returncode if program.returncode >= 0 else 128 - program.returncode


def webui_arguments(arguments: list[str]) -> list[str] | None:
    """Arguments of the second pytest: of tests named by their paths, those of the WebUI's side; None, and said, if none."""
    if sys.version_info[:2] not in WEBUI_PYTHONS:
        found = ".".join(map(str, sys.version_info[:2]))
        say(f"LEFT OUT: tests under the WebUI's own packages. tokenizers 0.13.3 needs Python 3.10 or 3.11; this is {found}.")
        return None
    named = [each for each in arguments if inside("tests", each)]
    theirs = [each for each in named if any(inside(folder, each) for folder in WEBUI_TESTS)]
    theirs += [folder for folder in WEBUI_TESTS if any(inside(each, folder) for each in named)]
    if named and not theirs:
        say("Left out: tests under the WebUI's own packages, since other tests are named.")
        return None
    return [*(dict.fromkeys(theirs) or WEBUI_TESTS), *(each for each in arguments if each not in named)]


def inside(folder: str, argument: str) -> bool:
    """Whether an argument of pytest names something that there is in a folder of the repository, or the folder."""
    path = Path(ROOT, argument.partition("::")[0])
    return not argument.startswith("-") and path.exists() and path.resolve().is_relative_to(ROOT / folder)


def set_up(kind: str, venv: Path = VENV) -> None:
    """Make the environment hold the requirements of `kind`; at once when it already does."""
    enough = list(REQUIREMENTS)[list(REQUIREMENTS).index(kind) :]
    stamp = venv / STAMP
    if python_of(venv).exists() and stamp.exists() and stamp.read_text() in map(digest, enough):
        return
    stamp.unlink(missing_ok=True)
    requirements = REQUIREMENTS[kind][-1]
    pip = [str(python_of(venv)), "-m", "pip", "install"]
    try:
        if not usable(venv):
            make_venv(venv)
        say(
            f"Setting up {venv}: installing {requirements}. The first time takes minutes and about 400 MB of downloads,\n"
            "or several GB on Linux, where torch comes with CUDA. Later starts are immediate."
        )
        execute([*pip, "-r", str(ROOT / requirements)], venv)
        if kind in ALONE:
            execute([*pip, "--no-deps", *ALONE[kind]], venv)
    except KeyboardInterrupt:
        say(f"Interrupted: {venv.name} is not complete. The same command again goes on from here.")
        sys.exit(130)
    stamp.write_text(digest(kind))
    say(f"Setting up {venv.name}: done.")


def python_of(venv: Path) -> Path:
    """The program of an environment."""
    return venv / PROGRAM


def digest(kind: str) -> str:
    """Name what an installation depends on: the Python, and the files that list the packages."""
    texts = [(ROOT / name).read_bytes() for name in REQUIREMENTS[kind]]
    parts = [sys.implementation.cache_tag.encode(), *texts, *map(str.encode, ALONE.get(kind, ()))]
    return sha256(b"\0".join(parts)).hexdigest()


def usable(venv: Path) -> bool:
    """Whether an environment is of this Python and has pip: not so if it was interrupted, or its Python has gone."""
    if not python_of(venv).exists():
        return False
    code = "import sys, pip; print(sys.implementation.cache_tag)"
    answer = subprocess.run([python_of(venv), "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    return answer.stdout.strip() == sys.implementation.cache_tag


def make_venv(venv: Path) -> None:
    """Create an environment anew with this Python."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if importlib.util.find_spec("ensurepip") is None:
        sys.exit(
            f"This Python ({sys.executable}) lacks ensurepip, so it cannot set up {venv.name}.\n"
            f"On Debian and Ubuntu: sudo apt install python{version}-venv. Then run the same command again."
        )
    say(f"Setting up {venv.name}: making it with Python {version}.")
    execute([sys.executable, "-m", "venv", "--clear", str(venv)], venv)


def execute(command: list[str], venv: Path) -> None:
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
            f"{''.join(last_words)}\nSetting up {venv.name} failed: exit code {step.returncode} and the words above are of\n"
            f"  {subprocess.list2cmdline(command)}\n"
            "Check the network and the space on the disk. 'No matching distribution' may mean that this Python is too new:\n"
            f"3.10 to 3.13 work, this is {sys.version.split()[0]}. Then run the same command again: it goes on from here."
        )


def say(text: str) -> None:
    """Progress goes to stderr: stdout belongs to the program that is run."""
    print(text, file=sys.stderr, flush=True)


def hand_over(arguments: list[str], folder: Path) -> int:
    """Become .venv's Python in `folder`; on Windows, which cannot, wait for it and return its exit code."""
    os.chdir(folder)
    if not WINDOWS:
        command = [str(python_of(VENV)), *arguments]
        os.execve(command[0], command, ENVIRONMENT)  # Ctrl-C, kill and the exit code are the program's own
    return wait_for(VENV, arguments)[0]


def wait_for(venv: Path, arguments: list[str], *others: Beside) -> tuple[int, bool]:
    """Run an environment's Python to its end, however it takes a Ctrl-C or kill: its exit code, whether there was one.

    A kill, now or later, ends `others` as well, and after either they begin nothing.
    """
    heard: list[int] = []

    def hear(number: int, _: object) -> None:
        heard.append(number)  # the terminal sends it to the programs as well
        for each in others:
            each.stopped = True

    signal.signal(signal.SIGINT, hear)
    with subprocess.Popen([str(python_of(venv)), *arguments], env=ENVIRONMENT) as program:

        def end(number: int, _: object) -> None:
            heard.append(number)
            for each in (program, *others):
                each.terminate()  # a kill was meant for all, and only we got it

        signal.signal(signal.SIGTERM, end)
        program.wait()
    return exit_code(program), bool(heard)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
