"""The package: its pins and ranges agree, and a wheel of it works where nothing of the repository is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import ti_trainer

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
PYTHONS = ("3.10", "3.11", "3.13")


def pins(file: str, python: str) -> dict[str, str]:
    """The versions that a file pins for a Python, by the package's name."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"==[\w.]+", str(each.specifier)) for each in found), "every pin is exact"
    here = [each for each in found if each.marker is None or each.marker.evaluate({"python_version": python})]
    assert len({each.name for each in here}) == len(here), "one pin each"
    return {each.name: str(each.specifier)[2:] for each in here}


@pytest.mark.parametrize("python", PYTHONS)
def test_what_the_package_needs_is_pinned_within_its_range_and_nothing_else_is(python):
    asked = [Requirement(each) for each in (*PROJECT["dependencies"], *chain(*EXTRAS.values()))]
    here = [each for each in asked if each.marker is None or each.marker.evaluate({"python_version": python})]
    pinned = pins("constraints.txt", python)
    assert {each.name for each in here} - {"ti-trainer"} == set(pinned)
    assert [each.name for each in here if each.name in pinned and pinned[each.name] not in each.specifier] == []


@pytest.mark.parametrize("python", PYTHONS[:2])
@pytest.mark.parametrize("host", ["webui", "forge"])
def test_what_all_environments_share_has_the_same_version(python, host):
    ours, theirs = pins("constraints.txt", python), pins(f"requirements-{host}.txt", python)
    for name in ("torch", "pytest", "pytest-timeout", "pytest-xdist", "playwright"):
        assert ours[name] == theirs[name]


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The folder of programs of an environment with the wheel; its other packages are those of this Python."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT]
    subprocess.run(build, check=True, cwd=folder)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    programs = folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
    wheel = next(folder.glob("ti_trainer-*.whl"))
    subprocess.run([*pip, "--python", programs / "python", "install", "--no-deps", "--no-index", wheel], check=True)
    packages = next((folder / "venv").rglob("site-packages"))
    (packages / "packages.pth").write_text("\n".join(each for each in sys.path if "site-packages" in each), encoding="utf-8")
    return programs


@pytest.fixture
def run(programs, tmp_path):
    """Runs a program of the environment in an empty folder and returns what it prints."""

    def run(program, *arguments):
        env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "TI_TRAINER_PROGRAM")}
        command = [programs / program, *arguments]
        result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, timeout=250, check=False)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


@pytest.mark.slow
def test_an_installed_wheel_holds_every_file_and_finds_them(run):
    code = (
        "import json; from pathlib import Path; import ti_trainer; from ti_trainer.resources import RESOURCES;"
        "print(json.dumps([str(Path(ti_trainer.__file__).parent), str(RESOURCES)]))"
    )
    package, resources = map(Path, json.loads(run("python", "-c", code)))
    assert package.parent.name == "site-packages"
    assert resources.parent == package
    assert files(package) - {Path("_resources") / each for each in files(resources)} == files(ROOT / "ti_trainer")
    assert files(resources) == files(ROOT, "javascript/*", "localizations/*", "style.css", "textual_inversion_templates/*")


@pytest.mark.slow
def test_the_command_of_an_installed_wheel_works(run, tmp_path):
    assert run("ti-trainer", "--version") == f"TI Trainer {ti_trainer.__version__}\n"
    assert run("ti-trainer", "demo", "--help").startswith("usage: ti-trainer demo")
    run("ti-trainer", "create", "x-word", "--model", "embedded")
    assert (tmp_path / "embeddings" / "x-word.safetensors").is_file()


def files(folder, *patterns):
    """Files in a folder, by their paths in it, without what Python wrote."""
    found = (path for pattern in patterns or ("**/*",) for path in folder.glob(pattern))
    return {path.relative_to(folder) for path in found if path.is_file() and "__pycache__" not in path.parts}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--version"], 0, "TI Trainer "),
        (["--help"], 0, "usage: "),
        (["train", "x"], 1, "Run `python install.py run train ...`"),
        (["train", "--help"], 1, "Run `python install.py run train ...`"),
        ([], 1, "Run `python install.py run page ...`"),
    ],
)
def test_a_python_without_the_packages_names_the_installer_in_one_line(arguments, code, said):
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from ti_trainer.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-I", "-S", "-c", program, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == code
    assert said in (result.stderr if code else result.stdout)
    assert (result.stderr.count("\n"), result.stdout) == (1, "") if code else result.stderr == ""
