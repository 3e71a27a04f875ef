"""Messages on a terminal: each on a line of its own, once, in the words of the command line."""

from __future__ import annotations

import io
import logging
import os
import re
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import pytest
from tqdm import tqdm

from ti_trainer import formats
from ti_trainer.__main__ import main
from ti_trainer.commands import progress
from ti_trainer.commands.terminal import above_bars, interruptible


@contextmanager
def terminal() -> Iterator[io.StringIO]:
    """Both streams in one place, as a terminal has them, and no handler of pytest's."""
    before, logging.root.handlers[:] = logging.root.handlers[:], []
    try:
        with redirect_stdout(io.StringIO()) as shown, redirect_stderr(shown):
            yield shown
    finally:
        logging.root.handlers[:] = before


def lines(shown: io.StringIO) -> list[str]:
    return shown.getvalue().replace("\r", "\n").split("\n")


@pytest.mark.filterwarnings("default")
def test_what_is_logged_or_warned_of_is_not_on_the_bars_line() -> None:
    with terminal() as shown:
        logging.basicConfig(format="%(message)s")
        logging.captureWarnings(True)  # as main does
        with above_bars(), tqdm(total=9, desc="Working") as bar:
            bar.update()
            logging.getLogger("ti_trainer").warning("An image is skipped")
            warnings.warn("a library's", UserWarning, stacklevel=1)
            bar.update()
        logging.captureWarnings(False)
    assert "An image is skipped" in lines(shown)
    assert any("UserWarning: a library's" in line and "Working" not in line for line in lines(shown))


def test_train_says_each_thing_on_a_line_of_its_own(
    word: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(images, "some")
    Path("some/broken.png").write_bytes(b"")
    rate = "0.005:2, 0.001:1"
    flags = ("--images", "some", "--max-steps", "9", "--preview-every", "0", "--learning-rate", rate)
    with terminal() as shown:
        assert main(["train", "thing", *flags]) == 0
    ends, unused = (
        "The learning rate schedule ends at step 2 of 9",
        "The stage '0.001:1' of the learning rate schedule is never",
    )
    for start in ("Skipped: broken.png", "Training on", "Done after step 2", ends, unused):
        assert sum(line.startswith(start) for line in lines(shown)) == 1, (start, lines(shown))
    assert formats.read(word).step == 2


def test_a_training_that_went_wrong_does_not_just_say_done(train: Callable[..., object], word: Path) -> None:
    outcome = train("--max-steps", 12, "--learning-rate", 5)
    assert outcome.code == 0
    done = outcome.out.index("Done after step 12")
    assert re.search(r"^Warning: At step \d+ the vectors of thing are", outcome.out[done:], re.MULTILINE)


def test_images_may_have_names_that_are_not_utf8(
    train: Callable[..., object], word: Path, tmp_path: Path, images: Path
) -> None:
    folder = tmp_path / os.fsdecode(b"s\x93\xfa")
    try:
        shutil.copytree(images, folder)
        (folder / "02.txt").unlink()
        (folder / "02.png").rename(folder / os.fsdecode(b"\x93\xfa.png"))
    except OSError:
        pytest.skip("this file system allows only UTF-8")
    assert train("--max-steps", 1, "--seed", 1, images=folder).code == 0
    assert train("--max-steps", 2, "--resume", images=folder).code == 0
    refused = train("--max-steps", 3, "--filename-word-regex", ".+", images=folder)
    assert refused.code == 1
    assert "is not UTF-8. Rename it." in refused.err


def test_bars_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "tqdm", partial(tqdm, disable=True))  # as TQDM_DISABLE=1 does
    with progress.Progress() as bar:
        bar.loading(1, 2)
        bar.loading(2, 2)
        bar.generating(1, 1)


def test_overwrite_without_resume_is_refused(train: Callable[..., object], word: Path) -> None:
    before = word.read_bytes()
    outcome = train("--max-steps", 1, "--overwrite")
    assert (outcome.code, word.read_bytes()) == (1, before)
    assert "--overwrite requires --resume" in outcome.errors[0]


@pytest.mark.parametrize("debug", [True, False])
def test_tracebacks_are_for_those_who_ask_for_them(
    debug: bool, word: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(run: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ti_trainer.runs.finalize.plot_losses", full)
    with terminal() as shown:
        flags = ("--max-steps", "1", "--preview-every", "0", *(["--debug"] if debug else []))
        assert main(["train", "thing", "--images", str(images), *flags]) == 0
    assert "The loss curve could not be drawn" in shown.getvalue()
    assert ("Traceback" in shown.getvalue()) == debug


@pytest.mark.parametrize("command", ["create", "train"])
def test_overwrite_is_named_once_and_nobody_is_to_tick_anything(
    command: str, cli: Callable[..., object], train: Callable[..., object], word: Path
) -> None:
    if command == "train":
        assert train("--max-steps", 2).code == 0
        assert cli("create", "thing", "--init-text", "moon", "--overwrite").code == 0
        before = word.read_bytes()
        outcome = train("--max-steps", 4, "--resume")
    else:
        before = word.read_bytes()
        outcome = cli("create", "thing")
    (error,) = outcome.errors
    assert outcome.code == 1
    assert error.count("--overwrite") == 1
    assert "tick" not in error.lower()
    assert word.read_bytes() == before
    if command == "train":
        assert train("--max-steps", 4, "--resume", "--overwrite").code == 0
        assert formats.read(word).step == 4


def test_a_name_too_long_is_refused_by_create_and_by_train(
    cli: Callable[..., object], train: Callable[..., object], word: Path
) -> None:
    name = "x" * 230
    assert "has 230 bytes, expected at most 200" in cli("create", name).errors[0]
    shutil.copy(word, word.with_name(f"{name}.safetensors"))
    assert "has 230 bytes, expected at most 200" in train("--max-steps", 2, name=name).errors[0]


@pytest.mark.usefixtures("hangup_heard")
@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has none")
def test_the_terminals_end_stops_a_run_but_for_nohup() -> None:
    with interruptible("") as stop:
        signal.raise_signal(signal.SIGHUP)
        assert stop.is_set()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible("") as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.is_set()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ctrl_c_while_the_terminal_is_written_to_stops_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream refuses to be written to by the handler of a signal that interrupted a write."""

    class Writing(io.StringIO):
        def write(self, text: str) -> int:
            raise RuntimeError("reentrant call")

        def fileno(self) -> int:
            return file.fileno()

    with (tmp_path / "terminal").open("w+") as file:
        monkeypatch.setattr(sys, "stderr", Writing())
        with interruptible("Stopping.") as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.is_set()
        assert (tmp_path / "terminal").read_text() == "\nStopping.\n"
