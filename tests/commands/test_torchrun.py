"""Two processes: the same numbers as one, results are saved however they end, and one process alone can continue."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from fakes import paint_mask
from safetensors.torch import load_file

from ti_trainer import formats
from ti_trainer.__main__ import main
from ti_trainer.commands.terminal import interruptible
from ti_trainer.commands.train import own_device
from ti_trainer.errors import ConfigError
from ti_trainer.runs.run_folder import Run

ROOT = Path(__file__).parents[2]
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "ti_trainer")
Start = Callable[..., "subprocess.Popen[str]"]
Pair = Callable[..., "list[subprocess.Popen[str]]"]
EVERYTHING = (
    *("--negative", "--train-cfg-scale", "1.5-3:cos", "--negative-lr", 0.5, "--ema-rate", 0.8, "--ema-every", 3),
    *("--reconstruction-weight", 0.5, "--mask-outside", 0.1, "--latent-sampling", "random", "--seed", 3),
    *("--clip-grad", "norm", "--clip-grad-limit", 0.05, "--csv-every", 1, "--save-every", 2, "--evaluate-every", 0),
    *("--preview-every", 4, "--preview-sampling-steps", 1, "--state-every", 1, "--learning-rate", 0.005),
)


ENDS = ("", "-neg", "-ema", "-neg-ema")


@pytest.fixture
def masked(images: Path, tmp_path: Path) -> Path:
    """The images, one of them with a mask."""
    folder = Path(shutil.copytree(images, tmp_path / "masked"))
    paint_mask(folder)
    return folder


def run_of(folder: Path) -> Run:
    """The only one."""
    (path,) = folder.glob("textual_inversion/*/*")
    return Run(path)


def alone(folder: Path, *arguments: object) -> int:
    places = ("--embeddings-dir", folder / "embeddings", "--log-dir", folder / "textual_inversion")
    return main([str(each) for each in ("train", "thing", *arguments, *places)])


def test_two_processes_compute_what_one_does_and_each_continues_what_the_other_began(
    pair: Pair, masked: Path, tmp_path: Path
) -> None:
    for name in ("two", "one", "batch"):
        (tmp_path / name).mkdir()
        places = ("--embeddings-dir", tmp_path / name / "embeddings")
        made = ("create", "thing", "--init-text", "star", "--num-vectors", 2, "--negative-vectors", 3, *places)
        assert main([str(each) for each in made]) == 0
    data, parts = ("--images", masked), ("--batch-size", 1, "--gradient-accumulation-steps", 3)
    assert alone(tmp_path / "one", *data, *EVERYTHING, *parts, "--max-steps", 8) == 0
    assert alone(tmp_path / "batch", *data, *EVERYTHING, "--batch-size", 3, "--max-steps", 8) == 0

    two = tmp_path / "two"
    outs = [trained_by(pair(*data, *EVERYTHING, *parts, "--max-steps", 3, cwd=two))]
    assert alone(two, *data, "--resume", "--max-steps", 5) == 0
    outs.append(trained_by(pair(*data, "--resume", "--max-steps", 8, cwd=two)))

    runs = [run_of(tmp_path / name) for name in ("two", "one", "batch")]
    ours, theirs = (load_file(run.path / "state.safetensors") for run in runs[:2])
    assert {"vectors.clip_l", "vectors.negative.clip_l", "average.clip_l"} <= ours.keys() == theirs.keys()
    assert all(torch.equal(each, theirs[key]) for key, each in ours.items())
    # One batch adds up in another order, of which Adam makes more with each step: equal to 1e-5 for the first four.
    for end in ENDS:
        found, expected = (formats.read(run.path / f"embeddings/thing{end}-4.safetensors").vectors for run in runs[::2])
        torch.testing.assert_close(found["clip_l"], expected["clip_l"], rtol=0, atol=1e-5)
    assert [row["step"] for row in runs[0].losses()] == list(range(1, 9))
    assert runs[0].losses() == runs[1].losses()
    first = [[row["loss"] for row in run.losses()][:4] for run in runs]
    assert first[0] == pytest.approx(first[2], abs=1e-5)
    words, others = ({path.name for path in (tmp_path / name / "embeddings").iterdir()} for name in ("two", "one"))
    assert words == others
    assert formats.read(two / "embeddings/thing.safetensors").step == 8
    begun, ended = outs
    assert begun.count("Training on embedded") == begun.count("Done after step 3, on 3 images.") == 1
    assert ended.count("Done after step 8, on 3 images.") == 1
    files = {path.relative_to(runs[0].path) for path in runs[0].path.rglob("*") if path.is_file()}
    others = {path.relative_to(runs[1].path) for path in runs[1].path.rglob("*") if path.is_file()}
    assert {path.stem.rsplit("-", 1)[1] for path in files - others} == {"3", "5"}  # where it was at an end for a while
    assert others <= files
    assert {Path("images/thing-4.png"), Path("images/thing-8.png"), Path("loss.png")} <= others
    for path in (path for path in others if path.suffix == ".png" and path.parent.name == "images"):
        assert (runs[0].path / path).read_bytes() == (runs[1].path / path).read_bytes()


def trained_by(processes: Sequence[subprocess.Popen[str]]) -> str:
    """What process 0 prints; the others print nothing."""
    (out, err), *others = (process.communicate(timeout=200) for process in processes)
    assert [process.returncode for process in processes] == [0, 0], (err, others)
    assert {silent for silent, _ in others} == {""}
    return out


def worker(process: subprocess.Popen[str], rank: int) -> int:
    """The id of a process that torchrun started."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            own = (folder / "environ").read_text().split("\0")
        except OSError:
            continue
        if parent == process.pid and f"RANK={rank}" in own:
            return int(folder.name)
    raise AssertionError(process.communicate())


def wait_for_step(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    until = time.monotonic() + 120
    while not (found := list(folder.glob("textual_inversion/*/*"))) or Run(found[0]).step < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.skipif(not Path("/proc/self/environ").is_file(), reason="looks for processes in /proc")
def test_a_stop_of_one_stops_all_and_nothing_is_lost_with_a_process_of_torchrun(
    start: Start, pair: Pair, images: Path, word: Path, word_file: Path, tmp_path: Path
) -> None:
    steps, parts = ("--max-steps", 40), ("--batch-size", 1, "--gradient-accumulation-steps", 2, "--preview-every", 0)
    flags = ("--images", images, *steps, *parts, "--seed", 3, "--csv-every", 1, "--save-every", 0, "--state-every", 5)
    whole = tmp_path / "whole"
    (whole / "embeddings").mkdir(parents=True)
    shutil.copy(word_file, whole / "embeddings")
    assert alone(whole, *flags) == 0

    writer, other = pair(*flags)
    wait_for_step(writer, tmp_path, 5)
    other.send_signal(signal.SIGINT)
    (out, err), silent = (process.communicate(timeout=120) for process in (writer, other))
    stopped = run_of(tmp_path).step
    assert (writer.returncode, other.returncode) == (130, 0), (out, err, silent)
    assert 5 <= stopped < 40
    assert f"Stopped after step {stopped}, on 3 images." in out
    assert not [line for line in err.splitlines() if line.startswith("Error: ")]
    assert formats.read(word).step == stopped

    process = start("train", "thing", "--images", images, "--resume", cwd=tmp_path, python=TORCHRUN)
    wait_for_step(process, tmp_path, stopped // 5 * 5 + 10)
    os.kill(worker(process, 1), signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, (out, err)  # torchrun's own
    (error,) = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert error.startswith("Error: Another process of this training was lost")
    assert error.endswith("Continue with --resume. The embedding as trained until then is in embeddings/thing.safetensors.")
    lost = run_of(tmp_path).step
    assert stopped + 5 < lost < 40
    assert formats.read(word).step == lost == len(run_of(tmp_path).losses())

    assert alone(tmp_path, "--images", images, "--resume") == 0
    ours, theirs = (load_file(run_of(folder).path / "state.safetensors") for folder in (tmp_path, whole))
    assert all(torch.equal(each, theirs[key]) for key, each in ours.items())
    assert run_of(tmp_path).losses() == run_of(whole).losses()


def test_too_few_micro_batches_are_refused_once_and_leave_nothing(
    pair: Pair, images: Path, word: Path, tmp_path: Path
) -> None:
    before = word.read_bytes()
    processes = pair("--images", images)
    (_, err), (out, silent) = (process.communicate(timeout=120) for process in processes)
    assert [process.returncode for process in processes] == [1, 0], (err, silent)
    (error,) = err.splitlines()
    assert error.startswith("Error: Gradient accumulation steps: found 1 for 2 processes, expected 2 or more: ")
    assert (out, silent) == ("", "")
    assert not (tmp_path / "textual_inversion").exists()
    assert word.read_bytes() == before


def test_an_error_ends_all_processes_and_is_printed_once(pair: Pair, images: Path, word: Path, tmp_path: Path) -> None:
    parts = ("--gradient-accumulation-steps", 2, "--preview-every", 0)
    processes = pair("--images", images, *parts, "--learning-rate", 1e-30)
    (_, err), (out, silent) = (process.communicate(timeout=120) for process in processes)
    assert [process.returncode for process in processes] == [1, 0], (err, silent)
    (error,) = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert error.startswith(
        "Error: After 10 steps the vectors have not moved: raise the learning rate. The embedding as trained"
    )
    assert (out, silent) == ("", "")
    assert run_of(tmp_path).step == 10


def test_without_the_process_that_writes_the_others_end_and_a_state_is_kept(
    pair: Pair, images: Path, word: Path, tmp_path: Path
) -> None:
    flags = ("--gradient-accumulation-steps", 2, "--preview-every", 0, "--state-every", 5, "--max-steps", 900)
    writer, other = pair("--images", images, *flags)
    wait_for_step(writer, tmp_path, 5)
    writer.kill()
    writer.communicate()
    out, err = other.communicate(timeout=120)
    assert other.returncode == 1
    assert "Error: Another process of this training was lost" in err
    assert out == ""
    assert 5 <= run_of(tmp_path).step < 900
    assert formats.read(word).step == 0


def test_one_press_that_is_heard_twice_is_one_and_kills_only_ask() -> None:
    with interruptible("", 60.0) as stop:
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
        assert stop.is_set()
    with interruptible("") as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_each_process_takes_the_gpu_of_its_number_on_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    assert [own_device(device, 1) for device in ("auto", "cuda", "cpu", "mps")] == ["cuda:1", "cuda:1", "cpu", "mps"]
    assert taken == [1, 1]
    with pytest.raises(ConfigError, match=r"Found 2 GPUs on this machine and at least 3 processes.*--nproc-per-node 2"):
        own_device("auto", 2)
    with pytest.raises(ConfigError, match=r"found 'cuda:1' for each of several processes, expected auto, cuda or cpu"):
        own_device("cuda:1", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert own_device("auto", 5) == "auto"
