"""`install.py test`: pytest in .venv, beside it the WebUI's side once more in .venv-webui."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from installing import (
    A_WHILE_S,
    command_with,
    install,
    make_house,
    make_wheel,
    needs_process_groups,
    offline,
    start_in_group,
)

OURS, THEIRS, PAGE = ".venv", ".venv-webui", ".venv page"
ALL = [OURS, THEIRS, PAGE]
WEBUI_TESTS = ["tests/hosts/webui", "tests/ui"]
HERE = {"WEBUI_PYTHONS": (sys.version_info[:2],)}  # whatever Python this is, it may


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """Set up, with a few tests."""
    house = make_house(tmp_path_factory.mktemp("house") / "a house")
    for path in (*(f"{folder}/test_a.py" for folder in WEBUI_TESTS), "tests/test_b.py"):
        (house / path).parent.mkdir(parents=True, exist_ok=True)
        (house / path).touch()
    return house


@pytest.fixture
def env(house):
    return offline(house / "wheels")


def run_tests(house, env, *arguments, changes=HERE, cwd=None):
    command = command_with(changes, house, "test", *arguments)
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


def runs(result):
    """What each pytest was given."""
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_tests_run_in_both_environments_each_with_what_it_needs(house, env, tmp_path):
    first = run_tests(house, env, "-k", "a b", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert runs(first) == [
        {"args": ["--ignore=tests/ui", "-k", "a b"], "cwd": str(house), "venv": OURS},
        {"args": [*WEBUI_TESTS, "-k", "a b"], "cwd": str(house), "venv": THEIRS},
        {"args": ["tests/ui", "-k", "a b"], "cwd": str(house), "venv": PAGE},
    ]
    installed = {
        venv: {path.stem for path in (house / venv).rglob("site-packages/*.py")} - {"_virtualenv"} for venv in (OURS, THEIRS)
    }
    assert installed == {OURS: {"wanted", "for_tests"}, THEIRS: {"for_webui", "stable_diffusion_sdkit"}}
    assert "Setting up .venv: done." in first.stderr
    assert "Setting up .venv-webui: done." in first.stderr
    headings = ("Once more under the WebUI's own packages (.venv-webui):", "The page under our own packages (.venv):")
    assert run_tests(house, env).stderr == "".join(f"\n{each}\n" for each in headings)
    assert install(house, "run", env=env).stderr == ""  # what the tests need includes what a run needs


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ((0, 0, 0), 0),
        ((1, 0, 0), 1),
        ((0, 2, 0), 2),
        ((0, 0, 3), 3),
        ((1, 2, 3), 1),
        ((0, 2, 3), 2),
        ((0, 5, 5), 0),
        ((0, 5, 3), 3),
        ((1, 5, 5), 1),
        ((5, 0, 0), 5),
    ],
)
def test_the_exit_code_is_the_first_that_is_not_0_and_nothing_to_do_beside_is_fine(house, env, codes, code):
    result = run_tests(house, {**env, "WANTS": json.dumps(dict(zip(ALL, codes, strict=True)))})
    assert [each["venv"] for each in runs(result)] == ALL
    assert result.returncode == code


@pytest.mark.parametrize(
    ("arguments", "second"),
    [
        (["-x", "-k", "ui"], [*WEBUI_TESTS, "-x", "-k", "ui"]),
        (["tests", "-x"], [*WEBUI_TESTS, "-x"]),
        (["tests/hosts"], ["tests/hosts/webui"]),
        (["tests/test_b.py"], None),
        (["tests/test_b.py::test_x", "-x"], None),
        (["tests/ui"], ["tests/ui"]),
        (["-x", "tests/test_b.py", "tests/hosts/webui/test_a.py::test_x"], ["tests/hosts/webui/test_a.py::test_x", "-x"]),
        (["tests/no_such.py"], [*WEBUI_TESTS, "tests/no_such.py"]),
    ],
)
def test_arguments_go_to_both_and_tests_that_are_named_run_where_they_belong(house, env, arguments, second):
    result = run_tests(house, env, *arguments)
    named = any("tests/" in each or each == "tests" for each in arguments) and "tests/no_such.py" not in arguments
    first = [arguments] if named else [["--ignore=tests/ui", *arguments]]
    third = [] if named else [["tests/ui", *arguments]]
    assert [each["args"] for each in runs(result)] == [*first, *([second] if second else []), *third]
    assert ("Left out: tests under the WebUI's own packages" in result.stderr) == (second is None)


def test_a_directory_elsewhere_names_no_tests(house, env, tmp_path):
    result = run_tests(house, env, "--webui", str(tmp_path))
    given = ["--webui", str(tmp_path)]
    shared_out = [["--ignore=tests/ui", *given], [*WEBUI_TESTS, *given], ["tests/ui", *given]]
    assert [each["args"] for each in runs(result)] == shared_out


def test_on_a_newer_python_the_second_part_is_left_out_and_the_output_says_so(house, env):
    result = run_tests(house, env, changes={"WEBUI_PYTHONS": ((2, 7),)})
    assert [each["venv"] for each in runs(result)] == [OURS]
    found = ".".join(map(str, sys.version_info[:2]))
    assert "LEFT OUT: tests under the WebUI's own packages." in result.stderr
    assert f"needs Python 3.10 or 3.11; this is {found}." in result.stderr


def test_other_packages_for_one_environment_leave_the_other_alone(house, env):
    requirements = house / "requirements-webui.txt"
    before = requirements.read_text()
    run_tests(house, env)
    make_wheel(house / "wheels", "added", "1.0")
    requirements.write_text(before + "added==1.0\n")
    try:
        result = run_tests(house, env)
    finally:
        requirements.write_text(before)
    assert "installing requirements-webui.txt" in result.stderr
    assert "installing requirements-test.txt" not in result.stderr
    assert list((house / THEIRS).rglob("added.py"))
    assert not list((house / OURS).rglob("added.py"))


def test_both_run_side_by_side_and_the_second_is_heard_after_the_first(house, env):
    run_tests(house, env)  # sets all up
    began = time.monotonic()
    result = run_tests(house, {**env, "WANTS": json.dumps({OURS: "a while", THEIRS: "a while"})})
    assert time.monotonic() - began < 2 * A_WHILE_S
    assert [each["venv"] for each in runs(result)] == ALL
    assert result.returncode == 0


@needs_process_groups
@pytest.mark.parametrize("venv", ALL)
@pytest.mark.parametrize("kill", ["Ctrl-C", "kill"])
def test_ctrl_c_and_kill_reach_the_pytest_at_work_and_none_comes_after_it(house, env, venv, kill):
    run_tests(house, env)
    with start_in_group(command_with(HERE, house, "test"), {**env, "WANTS": json.dumps({venv: "wait"})}) as process:
        for each in ALL[: 1 + ALL.index(venv)]:
            assert json.loads(process.stdout.readline())["venv"] == each
        time.sleep(0.3)  # it has said so just before it begins to wait
        if kill == "kill":
            os.kill(process.pid, signal.SIGTERM)
        else:
            os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (2 if kill == "Ctrl-C" else 128 + signal.SIGTERM, "")
    assert "Traceback" not in err
