"""Set up and start TI Trainer.

python install.py              what a WebUI runs at its start, in its own Python: installs the few packages
                               that the WebUI does not bring, and changes no other package
python install.py run [ARGS]   without a WebUI: sets up .venv beside this file on first use, then runs `ti-trainer ARGS`
python install.py test [ARGS]  sets up .venv for development and runs `pytest ARGS` in it, then the tests of the WebUI host
                               and of the page in .venv-webui with the WebUI's packages, and some of the page in .venv-forge
                               with Forge's; without ARGS, linters and mypy first
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent
WINDOWS = os.name == "nt"
PROGRAM = "Scripts/{}.exe" if WINDOWS else "bin/{}"  # in an environment
MISSING_IN_WEBUI = ("imagehash", *(() if sys.version_info >= (3, 11) else ("tomli",)))
DEPENDS_ON = ("install.py", "pyproject.toml", "constraints.txt", "requirements-webui.txt", "requirements-forge.txt")
INSTALLS = {  # the arguments of each `pip install`
    "run": ["-c constraints.txt -e ."],
    "test": ["-c constraints.txt -e .[dev]"],
    # The kit holds Stable Diffusion's `ldm`; it asks for old packages that `ldm` does not need.
    "webui": ["-r requirements-webui.txt", "--no-deps -e . stable-diffusion-sdkit==2.1.5"],
    "forge": ["-r requirements-forge.txt", "--no-deps -e ."],
}
CHECKS = ("ruff check .", "ruff format --check .", "mypy")
PYTEST = "pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder"
WEBUI_TESTS = {  # whose packages -> the tests that run with them, and options for when none are named
    "webui": (("tests/hosts/webui", "tests/ui"), ()),
    "forge": (("tests/ui",), ("-m", "gradio")),
}
NOT_TWICE = ("-m", "gradio or not page")  # leaves out tests of the page that run with the WebUI's gradio
WEBUI_PYTHONS = ((3, 10), (3, 11))  # tokenizers 0.13.3 and pillow 9.5 have wheels for these
NOTHING_COLLECTED = 5  # pytest's exit code
ENVIRONMENT = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
ENVIRONMENT.pop("PYTHONDONTWRITEBYTECODE", None)  # pip compiles nothing here: each start would compile all packages again


def main(arguments: list[str]) -> int:
    """Do what the first argument says and pass the others on; returns the exit code."""
    if sys.version_info < (3, 10):
        sys.exit(f"TI Trainer needs Python 3.10 or newer, and this is {sys.version.split()[0]} ({sys.executable}).")
    command, *rest = arguments or [""]
    if command in ("", "run", "test"):
        return {"": install_into_host, "run": run, "test": test}[command](rest)
    print(__doc__.strip())
    return 0 if command in ("-h", "--help") else 2


def install_into_host(_: list[str]) -> int:
    """Install what this Python lacks, holding every package that it has at its version."""
    missing = [name for name in MISSING_IN_WEBUI if importlib.util.find_spec(name) is None]
    if not missing:
        return 0
    pip, where, uv = [sys.executable, "-m", "pip"], [], shutil.which("uv")
    if uv and importlib.util.find_spec("pip") is None:  # uv makes environments without pip, Forge Neo's for one
        pip, where = [uv, "pip"], ["--python", sys.executable]
    options = {"capture_output": True, "env": {**ENVIRONMENT, "PIP_PREFER_BINARY": "1"}}
    with tempfile.TemporaryDirectory() as folder:
        installed = Path(folder, "installed.txt")
        result = subprocess.run([*pip, "list", "--format=freeze", *where], **options)
        if result.returncode == 0:  # without this list nothing would hold the host's packages
            installed.write_bytes(result.stdout)
            command = [*pip, "install", "--quiet", "--constraint", str(installed), *where, *missing]
            result = subprocess.run(command, **options)
    if result.returncode:
        reason = (result.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {result.returncode}"])[-1]
        sys.exit(f"TI Trainer could not install {', '.join(missing)}; the next start tries again. pip says: {reason}")
    print(f"TI Trainer: installed {', '.join(missing)}.")
    return 0


def run(arguments: list[str]) -> int:
    """Become .venv's ti-trainer; on Windows, where a process cannot be replaced, wait for it."""
    venv = set_up(".venv", "run", "test")  # an environment for `test` will do
    command = [str(venv / PROGRAM.format("ti-trainer")), *arguments]
    ENVIRONMENT["TI_TRAINER_PROGRAM"] = "python install.py run"  # for messages that suggest a command
    if not WINDOWS:
        os.execve(command[0], command, ENVIRONMENT)  # Ctrl-C, kill and the exit code are the program's own
    return call(command)


def test(arguments: list[str]) -> int:
    """Run the checks, and pytest in each environment; returns the first exit code that is not 0."""
    ENVIRONMENT.setdefault("OMP_NUM_THREADS", "1")  # tests run in parallel
    named = [each for each in arguments if each.startswith("tests") and Path(ROOT, each.partition("::")[0]).exists()]
    options = [each for each in arguments if each not in named]
    supported = sys.version_info[:2] in WEBUI_PYTHONS
    commands = [(".venv", each.split()) for each in (() if arguments else CHECKS)]
    commands.append((".venv", [*PYTEST.split(), *(arguments or (NOT_TWICE if supported else ()))]))
    kinds = {".venv": "test"}
    if not supported:
        print(f"LEFT OUT: tests with the WebUI's packages, which need Python 3.10 or 3.11, not {sys.version.split()[0]}.")
    for kind, (tests, selection) in WEBUI_TESTS.items() if supported else ():
        theirs = [each for each in named if each.startswith(tests)]
        if theirs or not named:
            chosen = theirs or [*tests, *selection]
            commands.append((f".venv-{kind}", [*PYTEST.split(), *chosen, *options]))
            kinds[f".venv-{kind}"] = kind
    codes = []
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))  # while environments are set up
    with ThreadPoolExecutor() as pool:  # pip uses one core
        environments = {name: pool.submit(set_up, name, kind) for name, kind in kinds.items()}
        for name, command in commands:
            venv = environments[name].result()
            print(f"{name}: {' '.join(command)}", flush=True)
            code = call([str(venv / PROGRAM.format("python")), "-m", *command], cwd=ROOT)
            codes.append(0 if name != ".venv" and code == NOTHING_COLLECTED else code)
    return next(filter(None, codes), 0)


def set_up(name: str, *kinds: str) -> Path:
    """Make an environment for the first of `kinds`, at once if it is there for one of them; returns its folder."""
    venv = ROOT / name
    python, stamp = venv / PROGRAM.format("python"), venv / "ti-trainer-installed"
    digest = hashlib.sha256(repr([ROOT, *((ROOT / each).read_bytes() for each in DEPENDS_ON)]).encode()).hexdigest()
    if python.exists() and stamp.exists() and stamp.read_text() in [f"{each} {digest}" for each in kinds]:
        return venv
    stamp.unlink(missing_ok=True)  # until all is installed: an interrupted set-up is repeated
    print(f"Setting up {venv}: the first time this takes minutes and up to several GB.", file=sys.stderr, flush=True)
    # Python compiles what it imports; pip would compile all that the packages hold, which takes a minute.
    steps = [[str(python), "-m", "pip", "install", "--no-compile", *each.split()] for each in INSTALLS[kinds[0]]]
    if not python.exists() or subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode:
        steps.insert(0, [sys.executable, "-m", "venv", "--clear", str(venv)])
    for step in steps:
        if code := call(step, cwd=ROOT, stdout=sys.stderr):  # stdout belongs to the program that is run
            sys.exit(
                f"Setting up {name} failed with exit code {code}. Check the network and the free disk space, then run the\n"
                f"same command again to continue. Python 3.10 to 3.13 are known to work; this is {sys.version.split()[0]}."
            )
    stamp.write_text(f"{kinds[0]} {digest}")
    return venv


def call(command: list[str], **options) -> int:
    """Run a program to its end and return its exit code; after Ctrl-C or a kill, which it receives too, exit with it."""
    stopped = []
    is_main = threading.current_thread() is threading.main_thread()  # only this one gets signals
    if is_main:
        signal.signal(signal.SIGINT, lambda *_: stopped.append("Ctrl-C"))  # the terminal sends it to the program as well
    with subprocess.Popen(command, env=ENVIRONMENT, **options) as process:
        if is_main:
            signal.signal(signal.SIGTERM, lambda *_: (stopped.append("kill"), process.terminate()))
        process.wait()
    code = process.returncode if process.returncode >= 0 else 128 - process.returncode  # as a shell reports a signal
    if stopped:
        sys.exit(code or 130)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
