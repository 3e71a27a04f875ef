"""The command line as users run it: in a process of its own where that matters, else in this one, which need not start."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import processes
import pytest
import torch

from ti_trainer import formats
from ti_trainer.__main__ import main
from ti_trainer.embedding import Embedding
from ti_trainer.host import ModelOptions
from ti_trainer.hosts.diffusers import loading
from ti_trainer.tiny_model.making import scenes

if TYPE_CHECKING:
    from ti_trainer.hosts.diffusers.model import DiffusersModel


@dataclass(frozen=True)
class Outcome:
    """What a user sees of a command."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("Error: ")]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in the processes that `start` starts: sums over threads differ in their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def embedded_model_is_read_once(embedded_model: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that run in this process share it, as the runs of a page do: reading it takes longer than ten steps."""
    load = loading.load

    def loaded(model: str, device: str = "auto", options: ModelOptions | None = None) -> DiffusersModel:
        options = options or ModelOptions()
        if model != "embedded" or loading.pick_dtype(options.precision, loading.pick_device(device)) != torch.float32:
            return load(model, device, options)
        return embedded_model.with_options(options)

    monkeypatch.setattr(loading, "load", loaded)


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.Popen[str]]:
    def started(*arguments: object, cwd: Path, python: tuple[str, ...] = ("-m", "ti_trainer")) -> subprocess.Popen[str]:
        return processes.start((*python, *arguments), cwd=cwd)

    return started


@pytest.fixture
def run(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> Callable[..., Outcome]:
    """In a process of its own."""

    def ran(*arguments: object, python: tuple[str, ...] = ("-m", "ti_trainer")) -> Outcome:
        process = start(*arguments, cwd=tmp_path, python=python)
        out, err = process.communicate(timeout=200)
        return Outcome(process.returncode, out, err)

    return ran


@pytest.fixture
def pair(tmp_path: Path) -> Callable[..., list[subprocess.Popen[str]]]:
    """Starts `train thing` in two processes with torchrun's environment, but without its own three interpreters."""

    def started(*flags: object, cwd: Path = tmp_path) -> list[subprocess.Popen[str]]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        both = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
        program = ("-m", "ti_trainer", "train", "thing", *flags)
        return [processes.start(program, cwd=cwd, environment={**both, "RANK": str(rank)}) for rank in range(2)]

    return started


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """In this process, in the folder tmp_path."""
    monkeypatch.chdir(tmp_path)

    def called(*arguments: object) -> Outcome:
        capsys.readouterr()
        try:
            code = main([str(each) for each in arguments])
        except SystemExit as end:
            code = end.code
        return Outcome(code, *capsys.readouterr())

    return called


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of three images with captions."""
    folder = tmp_path_factory.mktemp("images")
    scenes.write_images(folder, scenes.concept(scenes.CONCEPTS[0], 3, seed=1))
    return folder


@pytest.fixture(scope="session")
def word_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new embedding of two vectors, made by create."""
    folder = tmp_path_factory.mktemp("words")
    assert main(["create", "thing", "--init-text", "star", "--num-vectors", "2", "--embeddings-dir", str(folder)]) == 0
    return folder / "thing.safetensors"


@pytest.fixture
def word(word_file: Path, tmp_path: Path) -> Path:
    """The same in the default embeddings folder of tmp_path."""
    return copied(word_file, tmp_path)


def copied(file: Path, folder: Path) -> Path:
    copy = folder / "embeddings" / file.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(file.read_bytes())
    return copy


@pytest.fixture
def train(cli: Callable[..., Outcome], images: Path) -> Callable[..., Outcome]:
    """Train `thing` quickly; later flags go before earlier ones."""

    def trained(*flags: object, name: str = "thing", images: Path = images) -> Outcome:
        return cli("train", name, "--images", images, "--preview-every", 0, "--csv-every", 1, *flags)

    return trained


@pytest.fixture
def same_numbers() -> Callable[[Path, Path], bool]:
    def same(one: Path, other: Path) -> bool:
        first, second = formats.read(one), formats.read(other)
        return first.step == second.step and torch.equal(first.vectors["clip_l"], second.vectors["clip_l"])

    return same


@pytest.fixture
def foreign() -> Embedding:
    """Of SD 1.x: too wide for the embedded model."""
    return Embedding("wide", {"clip_l": torch.ones(1, 768)})
