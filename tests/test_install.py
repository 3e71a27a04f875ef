"""install.py everywhere but in the WebUI: it sets up .venv and runs what it is told to."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from installing import (
    command_with,
    install,
    make_house,
    make_wheel,
    needs_process_groups,
    offline,
    reported,
    start_in_group,
)


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """In an awkward place."""
    return make_house(tmp_path_factory.mktemp("house") / "Für Größe & Träume")


@pytest.fixture
def env(house):
    return offline(house / "wheels")


@pytest.fixture
def ready(house, env):
    """The house, after its first run."""
    result = install(house, "run", env=env)
    assert result.returncode == 0, result.stderr
    return house


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


def test_exit_code_is_passed_on(ready, env):
    assert install(ready, "run", "exit", "7", env=env).returncode == 7


@needs_process_groups
@pytest.mark.parametrize("windows", [False, True])
def test_ctrl_c_reaches_the_program_and_its_exit_code_is_passed_on(ready, env, windows):
    # Windows cannot replace a process: the parent stays, and has to wait.
    start = command_with({"WINDOWS": True} if windows else {}, ready, "run", "wait")
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
