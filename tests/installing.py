"""A small project for install.py to set up, from wheels made here: nothing comes from the network."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
TI_TRAINER = """
import json, os, sys, time
def main():
    command, *rest = sys.argv[1:] or [""]
    if command == "exit":
        return int(rest[0])
    if command == "wait":
        try:
            print("ready", flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
            return 130
    import wanted
    files = {"code": __file__, "wanted": wanted.__file__}
    print(json.dumps({**files, "args": sys.argv[1:], "cwd": os.getcwd(), "threads": os.environ.get("OMP_NUM_THREADS")}))
"""
TOOL = """
import json, os, sys, time
tool, venv = os.path.basename(__file__)[:-3], os.path.basename(sys.prefix)
wants = json.loads(os.environ.get("WANTS", "{}")).get(f"{venv} {tool}", 0)  # an exit code, or to wait
print(json.dumps({"tool": tool, "venv": venv, "args": sys.argv[1:]}), flush=True)
if wants == "wait":
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        wants = 2
sys.exit(wants)
"""
VENV = """
import shutil, subprocess, sys
from pathlib import Path
made, wanted = Path(__file__).with_name("made-by-venv"), Path(sys.argv[-1])
if not made.exists():
    command = [sys.executable, "-m", "venv", *sys.argv[1:-1], str(made)]
    subprocess.run(command, cwd=made.parents[1], check=True)  # not in this folder: there it would be this file
shutil.rmtree(wanted, ignore_errors=True)
shutil.copytree(made, wanted, symlinks=True)
"""  # takes the place of venv, which needs six seconds for each environment: all are copies of the first
PYPROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
BACKEND = """
import pathlib, shutil, time
def build_editable(folder, *_):
    if pathlib.Path("slow").exists():
        pathlib.Path("slow").rename("building")
        time.sleep(60)
    return pathlib.Path(shutil.copy("ti_trainer-1.0-py3-none-any.whl", folder)).name
"""


def make_wheel(folder, name, version, requires=(), **files):
    """Write the smallest wheel that pip takes: one module that holds its version, and these files about it."""
    info = f"{name}-{version}.dist-info"
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{name}.py", f"version = {version!r}\n")
        needs = "".join(f"Requires-Dist: {need}\n" for need in requires)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
        for each, text in files.items():
            archive.writestr(f"{info}/{each}", text)
    return wheel


def offline(wheels, **more):
    """An environment in which pip knows the wheels in one folder, and no index or settings of this machine."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "PYTHON", "OMP_"))}
    return {**kept, "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": wheels.as_uri(), **more}


def install(project, *arguments, env, cwd=None, python=sys.executable):
    command = [python, str(project / "install.py"), *arguments]
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


def make_project(folder):
    """A copy of install.py, with small things to install and to run."""
    (folder / "code").mkdir(parents=True)
    (folder / "wheels").mkdir()
    shutil.copy(REPOSITORY / "install.py", folder)
    (folder / "code" / "program.py").write_text(TI_TRAINER)
    for tool in ("pytest", "ruff", "mypy"):
        (folder / f"{tool}.py").write_text(TOOL)
    (folder / "venv.py").write_text(VENV)
    for name in ("wanted", "for_tests", "for_webui", "for_forge"):
        make_wheel(folder / "wheels", name, "1.0")
    make_wheel(folder / "wheels", "stable_diffusion_sdkit", "2.1.5", requires=["not-there"])
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "backend.py").write_text(BACKEND)
    (folder / "constraints.txt").write_text("wanted==1.0\nfor_tests==1.0\n")
    for name in ("webui", "forge"):
        (folder / f"requirements-{name}.txt").write_text(f"for_{name}==1.0\n")
    declare(folder)
    return folder


def declare(project, *more):
    """Have the package need `wanted` and `more`, and `for_tests` for its extra `dev`."""
    requires = ["wanted", *more, "for_tests; extra == 'dev'\nProvides-Extra: dev"]
    wheel = make_wheel(
        project, "ti_trainer", "1.0", requires, **{"entry_points.txt": "[console_scripts]\nti-trainer = program:main\n"}
    )
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("code.pth", f"{project / 'code'}\n")
