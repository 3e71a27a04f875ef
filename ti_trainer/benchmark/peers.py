"""Other trainers, run from checkouts of their repositories as their users run them, to be measured next to ours.

Each runs in its own process, a number of steps at a time: see `peer_driver`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ti_trainer.benchmark import peer_driver
from ti_trainer.errors import ConfigError, TITrainerError
from ti_trainer.wording import pip_install

if TYPE_CHECKING:
    from ti_trainer.embedding import Embedding

WEBUI = "webui"
LEARNING_RATE = 5e-3  # of all, so that the losses can be compared
WORD = "<bench>"  # not in CLIP's vocabulary
MIXED = {"float32": "no", "float16": "fp16", "bfloat16": "bf16"}
TOKENIZER_OF_SD1 = "openai_clip-vit-large-patch14"  # the name of the folder in which kohya looks for it


@dataclass(frozen=True)
class Task:
    """What all trainers are measured with: a model folder in diffusers' format and a folder of images of one size."""

    model: Path
    images: Path
    size_px: int
    batch_size: int
    precision: str
    device: str
    warm_up: int
    steps: int
    init_word: str

    @property
    def all_steps(self) -> int:
        """Measured steps and warm-up."""
        return self.warm_up + self.steps


@dataclass(frozen=True)
class Peer:
    """A trainer: its script in a checkout, its arguments, and the file that it writes, relative to a working folder."""

    name: str
    script: str
    arguments: Callable[[Task, Path], Mapping[str, object]]
    learned: str
    full_shape_only: bool = False
    folder: Path = Path()
    python: Path = Path(sys.executable)

    def script_path(self) -> Path:
        """The path of its script; ConfigError if it does not exist."""
        path = self.folder / self.script
        if not path.is_file():
            message = f"{path} does not exist: --against {self.name}=DIR expects a checkout of its repository."
            raise ConfigError(message)
        return path


class RunningPeer:
    """A peer that waits between two turns."""

    def __init__(self, peer: Peer, process: subprocess.Popen[str], learned: Path, errors: Path) -> None:
        """Wait until the process has warmed up."""
        if process.stdin is None or process.stdout is None:
            message = "expected a process with pipes"
            raise ValueError(message)
        self._peer, self._process, self._learned, self._errors = peer, process, learned, errors
        self._input, self._output = process.stdin, process.stdout
        self.memory: tuple[int, str] | None = None  # see peer_driver.peak_memory
        self._turn_over()

    def turn(self, steps: int) -> tuple[float, float]:
        """Let it run this many steps; returns wall and CPU seconds per step."""
        self._input.write(f"{steps}\n")
        self._input.flush()
        report = self._turn_over()
        if report["memory"] and (self.memory is None or report["memory"][0] > self.memory[0]):
            self.memory = (report["memory"][0], report["memory"][1])
        return report["wall"] / steps, report["cpu"] / steps

    def finish(self) -> Embedding | None:
        """Wait for its end and read its embedding, if it wrote one."""
        from ti_trainer import formats

        for _ in self._output:
            pass
        if self._process.wait():
            raise self._failure()
        return formats.read(self._learned) if self._learned.is_file() else None

    def _turn_over(self) -> dict[str, Any]:
        for line in self._output:
            if line.startswith(peer_driver.MARK):
                return dict(json.loads(line.removeprefix(peer_driver.MARK)))
        self._process.wait()
        raise self._failure()

    def _failure(self) -> TITrainerError:
        errors = self._errors.read_text(encoding="utf-8", errors="replace").strip()
        if missing := _missing_package(errors):
            message = (
                f"The peer {self._peer.name} needs the package {missing}, which its Python lacks: "
                f"{pip_install(missing, python=str(self._peer.python))}, "
                f"or choose another one: --peer-python {self._peer.name}=PYTHON"
            )
            return ConfigError(message)
        return TITrainerError(f"The peer {self._peer.name} failed (exit code {self._process.returncode}): {errors[-1000:]}")


@contextmanager
def running(peer: Peer, task: Task) -> Iterator[RunningPeer]:
    """Start the peer and warm it up; it is killed at the end of the block."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        pipe = subprocess.PIPE
        with (work / "errors.txt").open("w", encoding="utf-8") as errors:
            process = subprocess.Popen(
                command_of(peer, task, work),
                stdin=pipe,
                stdout=pipe,
                stderr=errors,
                cwd=work,
                env=environment_of(task),
                text=True,
                encoding="utf-8",
                errors="replace",
            )
        try:
            yield RunningPeer(peer, process, work / peer.learned, work / "errors.txt")
        finally:
            process.kill()
            process.communicate()


def command_of(peer: Peer, task: Task, work: Path) -> list[str]:
    """The command that trains with a peer in a working folder."""
    arguments = [text for key, value in peer.arguments(task, work).items() for text in _flag(key, value)]
    command = [peer.python, peer_driver.__file__, task.warm_up, task.steps, peer.script_path().resolve(), *arguments]
    return [str(each) for each in command]


def environment_of(task: Task) -> dict[str, str]:
    """The environment of a peer: without network access, and without GPUs where ours runs on the CPU."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return environment | {"CUDA_VISIBLE_DEVICES": ""} if task.device == "cpu" else environment


def peer_of(text: str, pythons: Mapping[str, Path]) -> Peer:
    """The peer in PEER=DIR, or in `webui`, which needs no folder; ConfigError for anything else."""
    name, _, folder = text.partition("=")
    if name not in PEERS or bool(folder) == (name == WEBUI):
        known = ", ".join(each if each == WEBUI else f"{each}=DIR" for each in PEERS)
        message = f"--against {text}: expected one or more of {known}."
        raise ConfigError(message)
    peer, python = PEERS[name], pythons.get(name, Path(sys.executable))
    if shutil.which(python) is None:
        message = f"--peer-python {name}={python}: there is no such program."
        raise ConfigError(message)
    return replace(peer, folder=Path(folder) if folder else peer.folder, python=python)


def _flag(key: str, value: object) -> list[str]:
    return [f"--{key}"] if value is True else [f"--{key}", str(value)]


def _missing_package(errors: str) -> str | None:
    last = errors.splitlines()[-1] if errors else ""
    marked = last.partition("No module named ")[2]
    return marked.strip("'\"").split(".")[0] or None


def _diffusers(task: Task, work: Path) -> dict[str, object]:
    _copy_images(task.images, work / "images")
    return {
        "pretrained_model_name_or_path": task.model,
        "train_data_dir": work / "images",
        "output_dir": work / "out",
        "placeholder_token": WORD,
        "initializer_token": task.init_word,
        "resolution": task.size_px,
        "train_batch_size": task.batch_size,
        "max_train_steps": task.all_steps,
        "learning_rate": LEARNING_RATE,
        "save_steps": 10**9,
        "checkpointing_steps": 10**9,
        "mixed_precision": MIXED[task.precision],
        "seed": 0,
    }


def _kohya(task: Task, work: Path) -> dict[str, object]:
    """With cached latents and SDPA, and an epoch that is longer than the run: each epoch starts new workers."""
    from ti_trainer.data.image_files import find_images

    count = len(find_images(task.images))
    repeats = -(-task.all_steps * task.batch_size // count) + 1
    _copy_images(task.images, work / "images" / f"{repeats}_images")
    shutil.copytree(task.model / "tokenizer", work / "tokenizers" / TOKENIZER_OF_SD1)
    return {
        "pretrained_model_name_or_path": task.model,
        "tokenizer_cache_dir": work / "tokenizers",
        "train_data_dir": work / "images",
        "output_dir": work / "out",
        "output_name": "learned",
        "save_model_as": "safetensors",
        "token_string": WORD,
        "init_word": task.init_word,
        "num_vectors_per_token": 1,
        "use_object_template": True,
        "resolution": task.size_px,
        "train_batch_size": task.batch_size,
        "max_train_steps": task.all_steps,
        "learning_rate": LEARNING_RATE,
        "cache_latents": True,
        "sdpa": True,
        "mixed_precision": MIXED[task.precision],
        "seed": 0,
    }


def _webui(task: Task, work: Path) -> dict[str, object]:
    return {
        "model": task.model,
        "images": task.images,
        "size": task.size_px,
        "batch-size": task.batch_size,
        "steps": task.all_steps,
        "device": task.device,
        "precision": {"no": "fp32"}.get(MIXED[task.precision], MIXED[task.precision]),
        "out": work / "learned.safetensors",
        "init-text": task.init_word,
    }


def _copy_images(images: Path, to: Path) -> None:
    from ti_trainer.data.image_files import find_images

    to.mkdir(parents=True)
    for path in find_images(images):
        shutil.copy(path, to)


PEERS = {
    each.name: each
    for each in (
        Peer(WEBUI, "webui_loop.py", _webui, "learned.safetensors", folder=Path(__file__).parent),
        Peer("diffusers", "examples/textual_inversion/textual_inversion.py", _diffusers, "out/learned_embeds.safetensors"),
        Peer("kohya", "train_textual_inversion.py", _kohya, "out/learned.safetensors", full_shape_only=True),
    )
}
