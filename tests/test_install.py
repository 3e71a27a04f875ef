"""install.py, run as a process, on packages made here: nothing comes from the network."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pip
import pytest

import ti_trainer

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


# In the WebUI's Python


class Host:
    """A Python of its own, with packages of the versions that a WebUI might have."""

    def __init__(self, folder):
        self.wheels = folder / "wheels"
        self.wheels.mkdir()
        venv = folder / "venv"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
        self.python = str(next(venv.glob("[bS]*/python*")))
        self.packages = next(venv.rglob("site-packages"))
        # A pip without a record of its own: quicker than setting one up, and the host's list stays short.
        shutil.copytree(Path(pip.__file__).parent, folder / "pip" / "pip", ignore=shutil.ignore_patterns("__pycache__"))
        self.env = offline(self.wheels, PYTHONPATH=str(folder / "pip"))

    def has(self, name, version):
        with zipfile.ZipFile(make_wheel(self.packages.parent, name, version)) as archive:
            archive.extractall(self.packages)

    def version(self, name):
        code = f"from importlib.metadata import version; print(version({name!r}))"
        return subprocess.run([self.python, "-c", code], capture_output=True, text=True, check=False).stdout.strip()

    def install(self):
        return install(REPOSITORY, env=self.env, python=self.python)


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


def test_bare_says_and_does_nothing_when_nothing_is_missing(host):
    host.has("matplotlib", "3.5")
    del host.env["PYTHONPATH"]  # takes its pip away: there must be no need for it
    result = host.install()
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_bare_installs_what_is_missing_in_a_version_that_suits_the_host(host):
    host.has("numpy", "1.26.2")
    make_wheel(host.wheels, "numpy", "2.4.6")
    make_wheel(host.wheels, "matplotlib", "9.0", requires=["numpy>=2"])
    make_wheel(host.wheels, "matplotlib", "8.0", requires=["numpy>=1.20", "cycler"])
    make_wheel(host.wheels, "cycler", "0.12")
    result = host.install()
    assert (result.returncode, result.stdout, result.stderr) == (0, "TI Trainer: installed matplotlib.\n", "")
    assert [host.version(name) for name in ("matplotlib", "cycler", "numpy")] == ["8.0", "0.12", "1.26.2"]


def test_bare_would_rather_fail_than_move_a_package_of_the_host(host):
    host.has("numpy", "1.26.2")
    make_wheel(host.wheels, "numpy", "2.4.6")
    make_wheel(host.wheels, "matplotlib", "9.0", requires=["numpy>=2"])
    result = host.install()
    assert result.returncode == 1
    assert result.stdout == ""
    assert re.fullmatch(r"TI Trainer could not install matplotlib; .* pip says: .+\n", result.stderr)
    assert host.version("numpy") == "1.26.2"
    assert not (host.packages / "matplotlib.py").exists()


def test_bare_says_in_one_line_that_there_is_no_pip(host):
    del host.env["PYTHONPATH"]
    result = host.install()
    assert result.returncode == 1
    assert re.fullmatch(r"TI Trainer could not install matplotlib; .*No module named pip\n", result.stderr)


# Everywhere else


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A copy of install.py in an awkward place, with small things to install and to run."""
    folder = tmp_path_factory.mktemp("house") / "Für Größe & Träume"
    (folder / "ti_trainer").mkdir(parents=True)
    (folder / "wheels").mkdir()
    shutil.copy(REPOSITORY / "install.py", folder)
    (folder / "ti_trainer" / "__init__.py").touch()
    (folder / "ti_trainer" / "__main__.py").write_text(PROGRAM)
    (folder / "pytest.py").write_text(PROGRAM)
    for name in ("wanted", "for_tests"):
        make_wheel(folder / "wheels", name, "1.0")
    (folder / "requirements.txt").write_text("wanted==1.0\n")
    (folder / "requirements-test.txt").write_text("-r requirements.txt\nfor_tests==1.0\n")
    return folder


@pytest.fixture
def env(house):
    return offline(house / "wheels")


@pytest.fixture
def ready(house, env):
    """The house, after its first run."""
    result = install(house, "run", env=env)
    assert result.returncode == 0, result.stderr
    return house


def reported(result):
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_first_run_says_what_it_does_and_later_ones_only_start_the_program(house, env):
    first = install(house, "run", "new", env=env)
    assert reported(first)["args"] == ["new"]
    assert "Setting up .venv: making it with Python" in first.stderr
    assert "installing requirements.txt" in first.stderr
    assert "Setting up .venv: done." in first.stderr
    assert install(house, "run", env=env).stderr == ""


def test_run_keeps_the_arguments_and_the_folder_and_uses_the_pinned_packages(ready, env, tmp_path):
    cwd = tmp_path / "mes étés"
    cwd.mkdir()
    (cwd / "wanted.py").touch()  # lies in the user's folder, and is not to be imported
    seen = reported(install(ready, "run", "--name", "größe & mehr", "", env=env, cwd=cwd))
    assert seen["args"] == ["--name", "größe & mehr", ""]
    assert Path(seen["cwd"]) == cwd
    assert Path(seen["prefix"]) == ready / ".venv"
    assert Path(seen["wanted"]).is_relative_to(ready / ".venv")


def test_test_runs_pytest_in_the_repository_with_what_the_tests_need(ready, env, tmp_path):
    result = install(ready, "test", "-k", "a b", env=env, cwd=tmp_path)
    seen = reported(result)
    assert seen["args"] == ["-k", "a b"]
    assert Path(seen["cwd"]) == ready
    assert list((ready / ".venv").rglob("for_tests.py"))
    # What the tests need includes what a run needs.
    assert install(ready, "run", env=env).stderr == ""


def test_exit_code_is_passed_on(ready, env):
    assert install(ready, "run", "exit", "7", env=env).returncode == 7


needs_process_groups = pytest.mark.skipif(os.name == "nt", reason="sends the signal that Ctrl-C sends to a process group")


def start_in_group(command, env):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=env, start_new_session=True, **pipes)


@needs_process_groups
@pytest.mark.parametrize("windows", [False, True])
def test_ctrl_c_reaches_the_program_and_its_exit_code_is_passed_on(ready, env, windows):
    start = [sys.executable, str(ready / "install.py"), "run", "wait"]
    if windows:  # which cannot replace a process: the parent stays, and has to wait
        code = "import runpy, sys; i = runpy.run_path(sys.argv[1]); g = i['hand_over'].__globals__; g['WINDOWS'] = True; "
        start[1:] = ["-c", code + "sys.exit(i['main'](sys.argv[2:]))", *start[1:]]
    with start_in_group(start, env) as process:
        assert process.stdout.readline() == "ready\n"
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, "interrupted\n", "")


def test_changed_requirements_are_installed(ready, env):
    requirements = ready / "requirements.txt"
    before = requirements.read_text()
    make_wheel(ready / "wheels", "added", "1.0")
    requirements.write_text(before + "added==1.0\n")
    try:
        assert "installing requirements.txt" in install(ready, "run", env=env).stderr
        assert list((ready / ".venv").rglob("added.py"))
    finally:
        requirements.write_text(before)


def test_failed_install_says_what_failed_and_is_tried_again(ready, env):
    requirements = ready / "requirements.txt"
    before = requirements.read_text()
    requirements.write_text("./wheels/not-there-1.0-py3-none-any.whl\n")
    try:
        for _ in range(2):
            result = install(ready, "run", env=env)
            assert result.returncode == 1
            assert result.stdout == ""  # the program did not start
            assert "Setting up .venv failed" in result.stderr
            assert "-m pip install -r" in result.stderr
            assert "not-there" in result.stderr
            assert "run the same command again" in result.stderr
            assert "Traceback" not in result.stderr
    finally:
        requirements.write_text(before)
    assert reported(install(ready, "run", env=env))["wanted"]


@needs_process_groups
def test_interrupted_install_is_not_taken_for_a_finished_one(ready, env, tmp_path):
    slow, started = tmp_path / "slow", tmp_path / "started"
    slow.mkdir()
    (slow / "pyproject.toml").write_text('[build-system]\nrequires = []\nbuild-backend = "slow"\nbackend-path = ["."]\n')
    (slow / "slow.py").write_text(f"import pathlib, time\npathlib.Path({str(started)!r}).touch()\ntime.sleep(60)\n")
    requirements = ready / "requirements.txt"
    before = requirements.read_text()
    requirements.write_text(f"{slow}\n")
    try:
        with start_in_group([sys.executable, str(ready / "install.py"), "run"], env) as process:
            while not started.exists() and process.poll() is None:
                time.sleep(0.05)
            os.killpg(process.pid, signal.SIGINT)
            _, err = process.communicate(timeout=30)
    finally:
        requirements.write_text(before)
    assert process.returncode == 130
    assert "Interrupted: .venv is not complete." in err
    assert "Traceback" not in err
    result = install(ready, "run", env=env)
    assert "Setting up .venv: done." in result.stderr
    assert reported(result)["wanted"]


def test_venv_without_pip_is_made_anew(ready, env):
    shutil.rmtree(next((ready / ".venv").rglob("site-packages")) / "pip")
    (ready / ".venv" / "ti-trainer-installed").unlink()  # as if the first run had been interrupted
    result = install(ready, "run", env=env)
    assert "making it with Python" in result.stderr
    assert reported(result)["wanted"]


def test_missing_ensurepip_names_the_package_to_install(house, env, tmp_path):
    shutil.copy(house / "install.py", tmp_path)
    shutil.copy(house / "requirements.txt", tmp_path)
    code = "import runpy, sys; sys.modules['ensurepip'] = None; runpy.run_path(sys.argv[1])['main'](sys.argv[2:])"
    command = [sys.executable, "-c", code, str(tmp_path / "install.py"), "run"]
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert f"apt install python{sys.version_info.major}.{sys.version_info.minor}-venv" in result.stderr


def test_older_python_is_refused_in_words(house, env):
    code = "import runpy, sys; sys.version_info = (3, 9, 2); runpy.run_path(sys.argv[1], run_name='__main__')"
    command = [sys.executable, "-c", code, str(house / "install.py")]
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "needs Python 3.10 or newer, and this is 3.9.2" in result.stderr


def test_unknown_command_and_help(house, env):
    unknown = install(house, "launch", env=env)
    assert unknown.returncode == 2
    assert "has no 'launch'" in unknown.stderr
    assert "install.py test [ARGS]" in unknown.stderr
    shown = install(house, "--help", env=env)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "install.py run [ARGS]" in shown.stdout


# The files beside it


def test_pins_are_exact_for_every_python_and_the_version_is_one():
    pins = [line for line in (REPOSITORY / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r'[\w-]+==[\d.]+(; python_version (>=|<) "3\.11")?', pin) for pin in pins)
    counts = {name: sum(pin.startswith(f"{name}==") for pin in pins) for name in (pin.split("==")[0] for pin in pins)}
    assert all(counts[pin.split("==")[0]] == (2 if ";" in pin else 1) for pin in pins)
    assert f'version = "{ti_trainer.__version__}"' in (REPOSITORY / "pyproject.toml").read_text()
