"""install.py run as a process, on packages made here: nothing comes from the network."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
PROGRAM = """
import json, os, sys, time
if sys.argv[1:2] == ["exit"]:
    sys.exit(int(sys.argv[2]))
if sys.argv[1:2] == ["wait"]:
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        sys.exit(130)
try:
    import wanted
except ImportError:
    wanted = None
seen = {"args": sys.argv[1:], "cwd": os.getcwd(), "prefix": sys.prefix, "wanted": getattr(wanted, "__file__", None)}
print(json.dumps(seen))
"""

A_WHILE_S = 4
PYTEST = """
import json, os, sys, time
name = os.path.basename(sys.prefix)
name += " page" * (name == ".venv" and sys.argv[1:2] == ["tests/ui"])
wants = json.loads(os.environ.get("WANTS", "{}")).get(name, 0)  # of the pytest in this environment: an exit code, or to wait
print(json.dumps({"args": sys.argv[1:], "cwd": os.getcwd(), "venv": name}), flush=True)
if wants == "wait":
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        wants = 2
if wants == "a while":
    wants = time.sleep(A_WHILE_S)
sys.exit(wants)
""".replace("A_WHILE_S", str(A_WHILE_S))


def make_wheel(folder, name, version, requires=()):
    """Write the smallest wheel that pip takes: one module that holds its version."""
    info = f"{name}-{version}.dist-info"
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{name}.py", f"version = {version!r}\n")
        needs = "".join(f"Requires-Dist: {need}\n" for need in requires)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


def offline(wheels, **more):
    """An environment in which pip knows the wheels in one folder, and no index or settings of this machine."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "PYTHON"))}
    return {**kept, "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": wheels.as_uri(), **more}


def install(house, *arguments, env, cwd=None, python=sys.executable):
    command = [python, str(house / "install.py"), *arguments]
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


def make_house(folder):
    """A copy of install.py, with small things to install and to run."""
    (folder / "ti_trainer").mkdir(parents=True)
    (folder / "wheels").mkdir()
    shutil.copy(REPOSITORY / "install.py", folder)
    (folder / "ti_trainer" / "__init__.py").touch()
    (folder / "ti_trainer" / "__main__.py").write_text(PROGRAM)
    (folder / "pytest.py").write_text(PYTEST)
    for name in ("wanted", "for_tests", "for_webui"):
        make_wheel(folder / "wheels", name, "1.0")
    make_wheel(folder / "wheels", "stable_diffusion_sdkit", "2.1.5", requires=["not-there"])
    (folder / "requirements.txt").write_text("wanted==1.0\n")
    (folder / "requirements-test.txt").write_text("-r requirements.txt\nfor_tests==1.0\n")
    (folder / "requirements-webui.txt").write_text("for_webui==1.0\n")
    return folder


def command_with(changes, house, *arguments):
    """What runs install.py as if these of its globals had other values."""
    code = (
        "import ast, runpy, sys; main = runpy.run_path(sys.argv[1])['main']; "
        "main.__globals__.update(ast.literal_eval(sys.argv[2])); sys.exit(main(sys.argv[3:]))"
    )
    return [sys.executable, "-c", code, str(house / "install.py"), repr(changes), *arguments]


def reported(result):
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


needs_process_groups = pytest.mark.skipif(os.name == "nt", reason="sends the signal that Ctrl-C sends to a process group")


def start_in_group(command, env):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=env, start_new_session=True, **pipes)
