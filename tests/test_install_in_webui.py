"""install.py as the WebUI runs it, and the files beside it."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pip
import pytest
from installing import REPOSITORY, install, make_wheel, offline


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
    made = Host(tmp_path)
    if sys.version_info < (3, 11):
        made.has("tomli", "2.0")
    return made


def test_bare_says_and_does_nothing_when_nothing_is_missing(host):
    host.has("imagehash", "3.5")
    del host.env["PYTHONPATH"]  # takes its pip away: there must be no need for it
    result = host.install()
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_bare_installs_what_is_missing_in_a_version_that_suits_the_host(host):
    host.has("numpy", "1.26.2")
    make_wheel(host.wheels, "numpy", "2.4.6")
    make_wheel(host.wheels, "imagehash", "9.0", requires=["numpy>=2"])
    make_wheel(host.wheels, "imagehash", "8.0", requires=["numpy>=1.20", "cycler"])
    make_wheel(host.wheels, "cycler", "0.12")
    result = host.install()
    assert (result.returncode, result.stdout, result.stderr) == (0, "TI Trainer: installed imagehash.\n", "")
    assert [host.version(name) for name in ("imagehash", "cycler", "numpy")] == ["8.0", "0.12", "1.26.2"]


def test_bare_would_rather_fail_than_move_a_package_of_the_host(host):
    host.has("numpy", "1.26.2")
    make_wheel(host.wheels, "numpy", "2.4.6")
    make_wheel(host.wheels, "imagehash", "9.0", requires=["numpy>=2"])
    result = host.install()
    assert result.returncode == 1
    assert result.stdout == ""
    assert re.fullmatch(r"TI Trainer could not install imagehash; .* pip says: .+\n", result.stderr)
    assert host.version("numpy") == "1.26.2"
    assert not (host.packages / "imagehash.py").exists()


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for uv is a shell script")
def test_bare_uses_uv_where_that_made_the_environment(host, tmp_path):
    del host.env["PYTHONPATH"]
    uv, calls = tmp_path / "bin" / "uv", tmp_path / "calls.txt"
    uv.parent.mkdir()
    uv.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n[ "$2" = list ] && echo numpy==2.3.5 || cat "$5" >> {calls}\n')
    uv.chmod(0o755)
    host.env["PATH"] = f"{uv.parent}{os.pathsep}{os.environ['PATH']}"
    result = host.install()
    assert (result.returncode, result.stdout, result.stderr) == (0, "TI Trainer: installed imagehash.\n", "")
    listed, installed, held = calls.read_text().splitlines()
    assert listed == f"pip list --format=freeze --python {host.python}"
    assert re.fullmatch(rf"pip install --quiet --constraint \S+ --python {re.escape(host.python)} imagehash", installed)
    assert held == "numpy==2.3.5"


def test_bare_says_in_one_line_that_there_is_no_pip(host):
    del host.env["PYTHONPATH"]
    host.env["PATH"] = ""  # nor uv
    result = host.install()
    assert result.returncode == 1
    assert re.fullmatch(r"TI Trainer could not install imagehash; .*No module named pip\n", result.stderr)


@pytest.mark.skipif(sys.version_info >= (3, 11), reason="later Pythons read TOML themselves")
def test_on_python_3_10_what_reads_toml_is_added(host):
    host.has("imagehash", "3.5")
    (host.packages / "tomli.py").unlink()
    shutil.rmtree(next(host.packages.glob("tomli-*")))
    make_wheel(host.wheels, "tomli", "2.1")
    assert host.install().stdout == "TI Trainer: installed tomli.\n"
    assert host.version("tomli") == "2.1"
