"""The command page, which also comes without a command: in a process of its own, asked by a client, ended by signals."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

gradio_client = pytest.importorskip("gradio_client")

from safetensors import safe_open  # noqa: E402

from ti_trainer import formats, tiny_model  # noqa: E402
from ti_trainer.commands import page as command  # noqa: E402
from ti_trainer.commands import train  # noqa: E402
from ti_trainer.commands.common import host_of  # noqa: E402
from ti_trainer.errors import ConfigError  # noqa: E402
from ti_trainer.runs.run_folder import Run  # noqa: E402
from ti_trainer.ui import api, app, layout  # noqa: E402
from ti_trainer.ui.page import Page  # noqa: E402

WORD = "embeddings/my-thing.safetensors"
SAYS = re.compile(r"The page is at (http://127\.0\.0\.1:(\d+)/) - press Ctrl-C here to quit\.")
no_signals = pytest.mark.skipif(sys.platform == "win32", reason="a signal cannot be sent to one process there")
Start = Callable[..., "subprocess.Popen[str]"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextmanager
def serving(start: Start, folder: Path, *arguments: object) -> Iterator[tuple[str, int, subprocess.Popen[str]]]:
    """The address that it says, the port in it, and the process."""
    process = start(*arguments, cwd=folder)
    try:
        assert process.stdout.readline() == "Loading the model 'embedded'.\n", process.communicate()
        found = SAYS.fullmatch(process.stdout.readline().strip())
        assert found, process.communicate()
        yield found[1], int(found[2]), process
    finally:
        process.kill()
        process.communicate()


def ended_by(number: signal.Signals, process: subprocess.Popen[str]) -> str:
    """What it says when a signal has ended it as it should."""
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "Traceback" not in said
    assert "Error" not in said
    return said


def answer(url: str) -> str:
    with urllib.request.urlopen(url, timeout=120) as response:  # noqa: S310 - ours
        return response.read().decode()


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that holds what a browser was opened with."""
    file, browser = tmp_path / "opened.txt", tmp_path / "browser.py"
    browser.write_text(f"import sys, pathlib; pathlib.Path({str(file)!r}).write_text(sys.argv[1])")
    monkeypatch.setenv("BROWSER", f"{shlex.quote(sys.executable)} {shlex.quote(str(browser))} %s")
    return file


@no_signals
def test_it_serves_where_it_says_and_ends_with_ctrl_c(start: Start, tmp_path: Path, opened: Path) -> None:
    port = free_port()
    with serving(start, tmp_path, "page", "--no-browser", "--port", port) as (url, said, process):
        assert said == port
        assert "TI Trainer" in answer(url)
        assert formats.read(tmp_path / WORD).step == 0
        ended_by(signal.SIGINT, process)
    assert not opened.exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows opens its own browser")
def test_without_a_command_the_page_opens_in_the_browser(start: Start, tmp_path: Path, opened: Path) -> None:
    with serving(start, tmp_path) as (url, port, process):
        assert port in app.PORTS
        assert "TI Trainer" in answer(url)  # which is after the browser was opened
        assert opened.read_text() == url
        ended_by(signal.SIGTERM, process)


def test_a_taken_port_is_one_error(run: Callable[..., object]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        outcome = run("page", "--no-browser", "--port", port)
    assert outcome.code == 1
    (line,) = outcome.errors
    assert f"Port {port} is already in use" in line
    assert outcome.err.splitlines() == [line]
    assert "The page is at" not in outcome.out


@no_signals
@pytest.mark.usefixtures("hangup_heard")
@pytest.mark.parametrize(
    "number", [signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGTERM)]
)  # the page makes SIGHUP SIGTERM
def test_signals_that_end_it_during_a_run_save_its_result(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    with serving(start, tmp_path, "page", "--no-browser", "--port", free_port()) as (url, _, process):
        client = gradio_client.Client(url, verbose=False)
        options = '{"max_steps": 1000000, "preview_every": 0, "csv_every": 1}'
        client.predict("my-thing", str(tiny_model.DEMO), options, api_name="/ti_trainer_train")
        end = time.monotonic() + 120
        while client.predict(api_name="/ti_trainer_status")["step"] < 5:
            assert time.monotonic() < end
            time.sleep(0.1)
        said = ended_by(number, process)
    assert "Stopping the training; its result is saved." in said
    learned, run = formats.read(tmp_path / WORD), Run.latest(tmp_path / "textual_inversion", "my-thing")
    assert learned.step >= 5
    assert run.step == learned.step == run.losses()[-1]["step"]
    with safe_open(run.path / "state.safetensors", "pt") as file:
        assert file.get_tensor("vectors.clip_l").equal(learned.vectors["clip_l"])


@pytest.fixture
def page_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Page]:
    """The page that a command line would serve from the folder tmp_path / "here"."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    built, build = [], layout.build
    monkeypatch.setattr(layout, "build", lambda page: built.append(page) or build(page))
    monkeypatch.setattr(app, "serve", lambda *_, **__: None)

    def made(*arguments: object) -> Page:
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        assert command.run(parser.parse_args([str(each) for each in ("--no-browser", *arguments)])) == 0
        return built[-1]

    return made


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        ((), {"here", "elsewhere", "demo"}),
        (("--images-dir", "../elsewhere"), {"here", "elsewhere", "demo"}),
        (("--address", "0.0.0.0"), {"here", "demo"}),  # noqa: S104 - what this is about
        (("--address", "0.0.0.0", "--images-dir", "../elsewhere"), {"elsewhere", "demo"}),  # noqa: S104
        (("--address", "::", "--images-dir", "../elsewhere", "--images-dir", "."), {"here", "elsewhere", "demo"}),
    ],
)
def test_others_on_the_network_reach_only_the_folders_that_were_named(
    page_of: Callable[..., Page], tmp_path: Path, arguments: tuple[str, ...], allowed: set[str]
) -> None:
    page = page_of(*arguments)
    assert page.size_px == 64, "the model's own, for what is preprocessed"
    folders = {"demo": tiny_model.DEMO}
    for name in ("here", "elsewhere"):
        folders[name] = tmp_path / name / "images"
        folders[name].mkdir(parents=True)
        (folders[name] / "1.png").write_bytes((tiny_model.DEMO / "01.png").read_bytes())
    for name, folder in folders.items():
        if name in allowed:
            page.host.check_folder(folder)
        else:
            with pytest.raises(ConfigError, match="not among the folders"):
                api.train(page, "my-thing", str(folder), "{}")
            with pytest.raises(ConfigError, match="not among the folders"):
                page.host.check_folder(tmp_path / "here" / ".." / name / "images")
    assert page.job.snapshot().status == "idle"


def test_a_link_leads_nobody_out_of_the_allowed_folders(page_of: Callable[..., Page], tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    try:
        (tmp_path / "here" / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    except OSError:
        pytest.skip("no links here")
    page = page_of("--address", "0.0.0.0")  # noqa: S104
    with pytest.raises(ConfigError, match="not among the folders"):
        page.host.check_folder(Path("link"))


def test_a_name_is_checked_where_the_page_is_started(capsys: pytest.CaptureFixture) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    assert parser.parse_args(["--allow-host", "box.lan", "--allow-host", "b:1"]).allow_host == ["box.lan", "b:1"]
    with pytest.raises(SystemExit):
        parser.parse_args(["--allow-host", "http://box.lan/"])
    assert "expected a name such as" in capsys.readouterr().err


def test_programs_are_for_those_who_start_the_page_to_allow(page_of: Callable[..., Page]) -> None:
    assert not page_of().host.torchscript
    assert page_of("--allow-torchscript").host.torchscript


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [((), False), (("--discriminator", "judge.pt"), True), (("--allow-torchscript",), True), (("--preset", "mine"), False)],
)
def test_who_types_a_discriminator_allows_it(arguments: tuple[str, ...], allowed: bool) -> None:
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    assert host_of(parser.parse_args(["x", "--images", "y", *arguments])).torchscript is allowed
