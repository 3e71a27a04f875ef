"""A run that Ctrl-C or a power cut ended continues bit for bit as if nothing had happened."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from ti_trainer import formats
from ti_trainer.__main__ import main
from ti_trainer.embedding import Embedding

STEPS = 60
FLAGS = ("--max-steps", STEPS, "--seed", 3, "--csv-every", 1, "--state-every", 10, "--preview-every", 0, "--save-every", 20)
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def whole(word_file: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    begin(word_file, folder)
    places = ("--embeddings-dir", folder / "embeddings", "--log-dir", folder / "textual_inversion")
    assert main([str(each) for each in ("train", "thing", "--images", images, *FLAGS, *places)]) == 0
    torch.set_num_threads(before)
    return folder


def begin(word_file: Path, folder: Path) -> Path:
    (folder / "embeddings").mkdir()
    return Path(shutil.copy(word_file, folder / "embeddings"))


def state_of(folder: Path) -> int:
    """The step of the state that is kept, 0 if there is none yet."""
    for path in folder.glob("textual_inversion/*/*/state.safetensors"):
        with safe_open(path, "pt") as file:
            return json.loads(file.metadata()["state"])["step"]
    return 0


def wait_for_step(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    until = time.monotonic() + 120
    while state_of(folder) < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)


def losses(folder: Path) -> list[tuple[str, ...]]:
    (table,) = folder.glob("textual_inversion/*/*/textual_inversion_loss.csv")
    with table.open(newline="", encoding="utf-8") as file:
        return [tuple(float(value) for value in row.values()) for row in csv.DictReader(file)]


def assert_as_if_whole(folder: Path, whole: Path) -> None:
    ours, theirs = (formats.read(each / "embeddings/thing.safetensors") for each in (folder, whole))
    assert ours.step == theirs.step == STEPS
    assert torch.equal(ours.vectors["clip_l"], theirs.vectors["clip_l"])
    table = losses(folder)
    assert [row[0] for row in table] == list(range(1, STEPS + 1))
    assert table == losses(whole)
    assert state_of(folder) == STEPS
    assert len(list(folder.glob("textual_inversion/*/*"))) == 1


def test_kill_9_damages_nothing_and_the_run_continues_exactly(
    start: Start, cli: Callable[..., object], word_file: Path, images: Path, tmp_path: Path, whole: Path
) -> None:
    word = begin(word_file, tmp_path)
    process = start("train", "thing", "--images", images, *FLAGS, cwd=tmp_path)
    wait_for_step(process, tmp_path, 20)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert 20 <= state_of(tmp_path) < STEPS, "it was killed in mid-run"

    assert formats.read(word).step == 0  # it is written at the end; the state has what was learned
    for path in tmp_path.rglob("*.safetensors"):
        if not path.name.startswith("."):
            with safe_open(path, "pt") as file:
                assert file.keys()
    (run,) = tmp_path.glob("textual_inversion/*/*")
    assert formats.read(run / "embeddings/thing-20.safetensors").step == 20
    for folder in (run, word.parent):  # as a kill in the middle of a write leaves them
        (folder / ".thing-k2j4.safetensors").write_bytes(word.read_bytes()[:99])
    (run / ".state-abc.safetensors").write_bytes((run / "state.safetensors").read_bytes()[:200])
    with (run / "textual_inversion_loss.csv").open("a", encoding="utf-8") as file:
        file.write("9")

    assert cli("train", "thing", "--images", images, "--resume").code == 0
    assert_as_if_whole(tmp_path, whole)
    outcome = cli("generate", "thing", "--steps", 1, "--out", "a.png")
    assert outcome.code == 0
    assert "k2j4" not in outcome.err


def test_an_interrupt_saves_everything_and_the_run_continues_exactly(
    start: Start, cli: Callable[..., object], word_file: Path, images: Path, tmp_path: Path, whole: Path
) -> None:
    word = begin(word_file, tmp_path)
    process = start("train", "thing", "--images", images, *FLAGS, cwd=tmp_path)
    wait_for_step(process, tmp_path, 10)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, (out, err)
    assert "Traceback" not in err
    stopped = formats.read(word)
    assert 10 <= stopped.step < STEPS, "it stopped in mid-run"
    assert f"Stopped after step {stopped.step}, on 3 images." in out
    assert "--resume" in out
    assert "Done" not in out
    assert state_of(tmp_path) == stopped.step
    assert losses(tmp_path) == losses(whole)[: stopped.step]
    (run,) = tmp_path.glob("textual_inversion/*/*")
    assert (run / "loss.png").is_file()

    assert cli("train", "thing", "--images", images, "--resume").code == 0
    assert_as_if_whole(tmp_path, whole)


@pytest.mark.usefixtures("hangup_heard")
@pytest.mark.parametrize(
    ("signals", "said"),
    [
        ([signal.SIGTERM], "Stopped after step 3"),
        ([signal.SIGHUP], "Stopped after step 3"),  # the terminal was closed
        ([signal.SIGINT] * 2, ""),
    ],
)
def test_a_second_ctrl_c_breaks_off_and_still_saves(
    signals: list[signal.Signals], said: str, train: Callable[..., object], word: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = formats.write

    def writing(embedding: Embedding, path: Path, format: str | None = None) -> None:
        write(embedding, path, format)
        if path.name == "thing-3.safetensors":
            for number in signals:
                os.kill(os.getpid(), number)

    monkeypatch.setattr(formats, "write", writing)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    outcome = train("--max-steps", 9, "--save-every", 3)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert outcome.code == 130
    assert said in outcome.out
    assert bool(said) == ("Stopped" in outcome.out)
    assert "Traceback" not in outcome.err
    assert formats.read(word).step == 3
    assert train("--resume").code == 0
    assert formats.read(word).step == 9
