"""`install.py run` and `install.py test`: they set up environments and run programs in them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from installing import declare, install, make_project, make_wheel, offline

pytestmark = pytest.mark.slow
needs_process_groups = pytest.mark.skipif(os.name == "nt", reason="sends the signal that Ctrl-C sends to a process group")
OURS, THEIRS, FORGES = ".venv", ".venv-webui", ".venv-forge"
CHECKS = [("ruff", ["check", "."]), ("ruff", ["format", "--check", "."]), ("mypy", [])]
PARALLEL = ["-n", "auto", "--maxprocesses", "8", "--dist", "loadfile", "--no-loadscope-reorder"]
WEBUI_TESTS = ["tests/hosts/webui", "tests/ui"]
FORGE_TESTS = ["tests/ui", "-m", "gradio"]
NOT_TWICE = ["-m", "gradio or not page"]
HERE = {"WEBUI_PYTHONS": (sys.version_info[:2],)}  # whatever Python this is, it may


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """In a folder with an awkward name, with all environments and a few tests."""
    project = make_project(tmp_path_factory.mktemp("project") / "Für Größe & Träume")
    for path in (*(f"{folder}/test_a.py" for folder in WEBUI_TESTS), "tests/test_b.py"):
        (project / path).parent.mkdir(parents=True, exist_ok=True)
        (project / path).touch()
    return project


@pytest.fixture
def env(project):
    return offline(project / "wheels")


@pytest.fixture
def ready(project, env):
    """The project after its first run."""
    assert install(project, "run", env=env).returncode == 0
    return project


@pytest.fixture
def tested(project, env):
    """The project after its first test."""
    assert run_tests(project, env).returncode == 0
    return project


def with_globals(changes, project, *arguments):
    """The command that runs install.py as if these of its globals had other values."""
    code = (
        "import ast, runpy, sys; main = runpy.run_path(sys.argv[1])['main']; "
        "main.__globals__.update(ast.literal_eval(sys.argv[2])); sys.exit(main(sys.argv[3:]))"
    )
    return [sys.executable, "-c", code, str(project / "install.py"), repr(changes), *arguments]


def run_tests(project, env, *arguments, changes=HERE):
    command = with_globals(changes, project, "test", *arguments)
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)


def tools(result):
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def seen(result):
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def start_in_group(command, env):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=env, start_new_session=True, **pipes)


def test_first_run_sets_up_and_later_ones_only_start_the_program(project, env):
    first = install(project, "run", "new", env=env)
    assert seen(first)["args"] == ["new"]
    assert "Setting up" in first.stderr
    assert install(project, "run", env=env).stderr == ""


def test_run_keeps_the_arguments_and_the_folder_and_uses_the_packages_of_the_environment(ready, env, tmp_path):
    (tmp_path / "wanted.py").touch()  # in the user's folder, and not to be imported
    result = seen(install(ready, "run", "--name", "größe & mehr", "", env=env, cwd=tmp_path))
    assert result["args"] == ["--name", "größe & mehr", ""]
    assert Path(result["cwd"]) == tmp_path
    assert Path(result["code"]) == ready / "code" / "program.py"
    assert Path(result["wanted"]).is_relative_to(ready / OURS)
    assert result["threads"] is None  # the tests' limit is not for training
    assert install(ready, "run", "exit", "7", env=env).returncode == 7


@needs_process_groups
@pytest.mark.parametrize("windows", [False, True])
def test_ctrl_c_reaches_the_program_and_its_exit_code_is_passed_on(ready, env, windows):
    # Windows cannot replace a process: the parent stays, and has to wait.
    with start_in_group(with_globals({"WINDOWS": windows}, ready, "run", "wait"), env) as process:
        assert process.stdout.readline() == "ready\n"
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (130, "interrupted\n", "")


def test_other_requirements_are_installed(ready, env):
    make_wheel(ready / "wheels", "added", "1.0")
    constraints = ready / "constraints.txt"
    constraints.write_text(constraints.read_text() + "added==1.0\n")
    declare(ready, "added")
    assert "Setting up" in install(ready, "run", env=env).stderr
    assert list((ready / OURS).rglob("added.py"))


def test_failed_set_up_is_reported_and_tried_again(ready, env):
    constraints = ready / "constraints.txt"
    before = constraints.read_text()
    constraints.write_text("wanted==9.0\n")
    try:
        for _ in range(2):
            result = install(ready, "run", env=env)
            assert (result.returncode, result.stdout) == (1, "")  # the program did not start
            assert "Setting up .venv failed with exit code 1" in result.stderr
            assert "wanted==9.0" in result.stderr
    finally:
        constraints.write_text(before)
    assert seen(install(ready, "run", env=env))


@needs_process_groups
def test_interrupted_set_up_is_repeated(ready, env):
    (ready / "slow").touch()
    (ready / OURS / "ti-trainer-installed").unlink()
    with start_in_group([sys.executable, str(ready / "install.py"), "run"], env) as process:
        while not (ready / "building").exists() and process.poll() is None:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        out, _ = process.communicate(timeout=120)
    assert process.returncode not in (0, None)
    assert out == ""
    assert "Setting up" in install(ready, "run", env=env).stderr
    assert install(ready, "run", env=env).stderr == ""


def test_environment_without_pip_is_made_anew(ready, env):
    shutil.rmtree(next((ready / OURS).rglob("site-packages")) / "pip")
    (ready / OURS / "ti-trainer-installed").unlink()  # as if the first run had been interrupted
    assert seen(install(ready, "run", env=env))


def test_older_python_is_refused(project, env):
    code = "import runpy, sys; sys.version_info = (3, 9, 2); runpy.run_path(sys.argv[1], run_name='__main__')"
    command = [sys.executable, "-c", code, str(project / "install.py")]
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "needs Python 3.10 or newer" in result.stderr


def test_unknown_command_and_help(project, env):
    unknown, asked = install(project, "launch", env=env), install(project, "--help", env=env)
    assert (unknown.returncode, asked.returncode) == (2, 0)
    assert "install.py test [ARGS]" in asked.stdout == unknown.stdout


def test_tests_run_after_the_checks_in_all_environments_each_with_what_it_needs(tested, env):
    assert [(each["venv"], each["tool"], each["args"]) for each in tools(run_tests(tested, env))] == [
        *((OURS, *check) for check in CHECKS),
        (OURS, "pytest", [*PARALLEL, *NOT_TWICE]),
        (THEIRS, "pytest", [*PARALLEL, *WEBUI_TESTS]),
        (FORGES, "pytest", [*PARALLEL, *FORGE_TESTS]),
    ]
    installed = {
        OURS: {"wanted", "for_tests"},
        THEIRS: {"for_webui", "stable_diffusion_sdkit"},
        FORGES: {"for_forge"},
    }
    for venv, packages in installed.items():
        found = {path.stem for path in (tested / venv).rglob("site-packages/*.py")}
        assert found & set().union(*installed.values()) == packages
    assert install(tested, "run", env=env).stderr == ""  # what the tests need includes what a run needs


@pytest.mark.parametrize(
    ("wants", "code"),
    [
        ({f"{OURS} ruff": 1, f"{THEIRS} pytest": 2}, 1),
        ({f"{OURS} mypy": 3, f"{OURS} pytest": 1}, 3),
        ({f"{THEIRS} pytest": 2}, 2),
        ({f"{THEIRS} pytest": 5}, 0),
        ({f"{FORGES} pytest": 1}, 1),
        ({f"{FORGES} pytest": 5}, 0),
        ({f"{OURS} pytest": 5}, 5),
    ],
)
def test_the_exit_code_is_the_first_that_is_not_0_and_all_is_run(tested, env, wants, code):
    result = run_tests(tested, {**env, "WANTS": json.dumps(wants)})
    assert result.returncode == code
    assert len(tools(result)) == len(CHECKS) + 3


@pytest.mark.parametrize(
    ("arguments", "webui", "forge"),
    [
        (["-x", "-k", "a b"], [*WEBUI_TESTS, "-x", "-k", "a b"], [*FORGE_TESTS, "-x", "-k", "a b"]),
        (["--webui", "/"], [*WEBUI_TESTS, "--webui", "/"], [*FORGE_TESTS, "--webui", "/"]),
        (["tests/test_b.py::test_x", "-x"], None, None),
        (["tests/ui"], ["tests/ui"], ["tests/ui"]),
        (
            ["-x", "tests/test_b.py", "tests/hosts/webui/test_a.py::test_x"],
            ["tests/hosts/webui/test_a.py::test_x", "-x"],
            None,
        ),
    ],
)
def test_arguments_go_to_all_and_tests_that_are_named_run_where_they_belong(tested, env, arguments, webui, forge):
    runs = [[*PARALLEL, *each] for each in (arguments, webui, forge) if each]
    assert [each["args"] for each in tools(run_tests(tested, env, *arguments))] == runs


def test_on_a_newer_python_these_parts_are_left_out_and_the_output_says_so(tested, env):
    result = run_tests(tested, env, "-x", changes={"WEBUI_PYTHONS": ((2, 7),)})
    assert [each["venv"] for each in tools(result)] == [OURS]
    assert "LEFT OUT: tests with the WebUI's packages" in result.stdout


@needs_process_groups
@pytest.mark.parametrize(("kill", "code"), [("Ctrl-C", 2), ("kill", 128 + signal.SIGTERM)])
def test_ctrl_c_and_kill_reach_the_pytest_at_work_and_nothing_runs_after_it(tested, env, kill, code):
    with start_in_group(
        with_globals(HERE, tested, "test", "-x"), {**env, "WANTS": f'{{"{OURS} pytest": "wait"}}'}
    ) as process:
        assert process.stdout.readline().startswith(".venv: pytest")
        assert json.loads(process.stdout.readline())["venv"] == OURS
        time.sleep(0.3)  # it has said so just before it begins to wait
        if kill == "kill":
            os.kill(process.pid, signal.SIGTERM)
        else:
            os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (code, "")
    assert "Traceback" not in err


def test_a_project_that_was_moved_is_set_up_again(ready, env, tmp_path):
    moved = tmp_path / "moved"
    shutil.move(ready, moved)
    try:
        declare(moved)
        env = offline(moved / "wheels")
        assert Path(seen(install(moved, "run", env=env))["code"]) == moved / "code" / "program.py"
    finally:
        shutil.move(moved, ready)
