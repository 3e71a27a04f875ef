"""Other trainers, run from their own checkouts as their users run them, to be measured beside ours. Knows no clock of ours.

Each is a process of its own that goes on some steps at a time: see `peer_driver`.
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
from typing import Any

from ti_trainer import formats
from ti_trainer.benchmark import peer_driver, webui_loop
from ti_trainer.data.image_files import find_images
from ti_trainer.embedding import Embedding
from ti_trainer.errors import ConfigError, TITrainerError
from ti_trainer.wording import pip_install

LEARNING_RATE = 5e-3  # ours, so that the losses can be compared
WORD = "<bench>"  # no token yet in CLIP's vocabulary
MIXED = {"float32": "no", "float16": "fp16", "bfloat16": "bf16"}
TOKENIZER_OF_SD1 = "openai_clip-vit-large-patch14"  # the folder that kohya looks for it in


@dataclass(frozen=True)
class Task:
    """What all are measured at. `model` is a folder in diffusers' layout, `images` one of images of one size."""

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
        """Those that are not counted among them."""
        return self.warm_up + self.steps


@dataclass(frozen=True)
class Peer:
    """A trainer: where its script is in a checkout, what it is told, and where it leaves what it learned, below a folder."""

    name: str
    script: str
    arguments: Callable[[Task, Path], Mapping[str, object]]
    learned: str
    full_shape_only: bool = False
    folder: Path = Path()
    python: Path = Path(sys.executable)

    def script_path(self) -> Path:
        """ConfigError if it is not there."""
        path = self.folder / self.script
        if not path.is_file():
            message = f"{path} does not exist: --against {self.name}=DIR takes a checkout of its repository."
            raise ConfigError(message)
        return path


class RunningPeer:
    """A peer between two turns."""

    def __init__(self, peer: Peer, process: subprocess.Popen[str], learned: Path, errors: Path) -> None:
        """It has been started, and is warming up."""
        if process.stdin is None or process.stdout is None:
            message = "a peer is spoken to: it needs pipes"
            raise ValueError(message)
        self._peer, self._process, self._learned, self._errors = peer, process, learned, errors
        self._orders, self._said = process.stdin, process.stdout
        self.memory: tuple[int, str] | None = None  # at its most, see peer_driver.peak_memory
        self._turn_over()

    def turn(self, steps: int) -> tuple[float, float]:
        """Let it go on; seconds a step, of the clock and of the CPU."""
        self._orders.write(f"{steps}\n")
        self._orders.flush()
        said = self._turn_over()
        if said["memory"] and (self.memory is None or said["memory"][0] > self.memory[0]):
            self.memory = tuple(said["memory"])
        return said["wall"] / steps, said["cpu"] / steps

    def finish(self) -> Embedding | None:
        """Let it end and read what it learned, if it keeps that."""
        for _ in self._said:
            pass
        if self._process.wait():
            raise self._failure()
        return formats.read(self._learned) if self._learned.is_file() else None

    def _turn_over(self) -> dict[str, Any]:
        for line in self._said:
            if line.startswith(peer_driver.MARK):
                return dict(json.loads(line.removeprefix(peer_driver.MARK)))
        self._process.wait()
        raise self._failure()

    def _failure(self) -> TITrainerError:
        said = self._errors.read_text(encoding="utf-8", errors="replace").strip()
        if missing := _missing_package(said):
            message = (
                f"The peer {self._peer.name} needs the package {missing}, which its Python lacks: "
                f"{pip_install(missing, python=str(self._peer.python))}, "
                f"or take another one: --peer-python {self._peer.name}=PYTHON"
            )
            return ConfigError(message)
        return TITrainerError(f"The peer {self._peer.name} failed (exit code {self._process.returncode}): {said[-1000:]}")


@contextmanager
def running(peer: Peer, task: Task) -> Iterator[RunningPeer]:
    """The peer at work, warm; it is ended with the context."""
    script = peer.script_path()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        arguments = [text for key, value in peer.arguments(task, work).items() for text in _flag(key, value)]
        command = [peer.python, peer_driver.__file__, task.warm_up, task.steps, script.resolve(), *arguments]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        if task.device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""  # they take a GPU where there is one
        pipe = subprocess.PIPE
        with (work / "errors.txt").open("w", encoding="utf-8") as errors:
            process = subprocess.Popen(
                [str(each) for each in command],
                stdin=pipe,
                stdout=pipe,
                stderr=errors,
                cwd=work,
                env=environment,
                text=True,
                encoding="utf-8",
                errors="replace",
            )
        try:
            yield RunningPeer(peer, process, work / peer.learned, work / "errors.txt")
        finally:
            process.kill()
            process.communicate()


def peer_of(text: str, pythons: Mapping[str, Path]) -> Peer:
    """A peer from PEER=DIR; ours needs no folder. ConfigError for what is none."""
    name, _, folder = text.partition("=")
    if name not in PEERS or bool(folder) == (name == webui_loop.NAME):
        known = ", ".join(each if each == webui_loop.NAME else f"{each}=DIR" for each in PEERS)
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
    """With latents cached and attention by SDPA; an epoch is longer than the run, since each begins with new workers."""
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
    to.mkdir(parents=True)
    for path in find_images(images):
        shutil.copy(path, to)


PEERS = {
    each.name: each
    for each in (
        Peer(webui_loop.NAME, Path(webui_loop.__file__).name, _webui, "learned.safetensors", folder=Path(__file__).parent),
        Peer("diffusers", "examples/textual_inversion/textual_inversion.py", _diffusers, "out/learned_embeds.safetensors"),
        Peer("kohya", "train_textual_inversion.py", _kohya, "out/learned.safetensors", full_shape_only=True),
    )
}
