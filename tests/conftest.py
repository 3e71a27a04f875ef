"""What many tests start from: the embedded model, images, a dataset of them and a trainer on it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import browser
import numpy as np
import pytest
import slow_tests
import torch
from fakes import TinyModel
from PIL import Image

from ti_trainer.config.training import TrainConfig
from ti_trainer.data import image_formats
from ti_trainer.data.dataset import Dataset
from ti_trainer.data.images import Frame
from ti_trainer.data.loading import DatasetOptions, load_dataset
from ti_trainer.data.prompts import Prompter
from ti_trainer.embedding import Embedding
from ti_trainer.training.trainer import Trainer, TrainState

if TYPE_CHECKING:
    from ti_trainer.hosts.diffusers.model import DiffusersModel

TAGS = ("red, round, small", "blue, square, large, old", "green, flat, new")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--webui", metavar="DIR", type=Path, help="a checkout of the WebUI that tests start, with its repositories/"
    )
    parser.addoption(
        "--record-slow", metavar="SECONDS", type=float, help="list tests that take more CPU time as slow: slow_tests.py"
    )
    parser.addoption(
        "--webui-timeout", metavar="SECONDS", type=float, default=280, help="how long it may take to start, and to answer"
    )
    parser.addoption(
        "--webui-other",
        metavar="DIR",
        type=Path,
        action="append",
        default=[],
        help="another checkout, with its venv/, where embeddings that are trained in the first one must load",
    )
    parser.addoption("--webui-python", metavar="PY", type=Path, help="its Python; DIR/venv/bin/python by default")


def pytest_configure(config: pytest.Config) -> None:
    limit_s = config.getoption("--record-slow")
    if limit_s is not None:
        config.pluginmanager.register(slow_tests.Recorder(limit_s))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow_tests.mark(items)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Small models are faster on one, and sums are then always added up in the same order."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def _browsers_of_a_module() -> Iterator[None]:
    """A module's tests share them."""
    yield
    browser.close()


@pytest.fixture(scope="session")
def embedded_model() -> DiffusersModel:
    """The Stable Diffusion that ships with us, on the CPU. Tests leave it as it is."""
    from ti_trainer.hosts.diffusers import loading

    return loading.load("embedded", "cpu")


@pytest.fixture
def without_image_plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As where neither pillow-heif nor pillow-jxl-plugin is installed."""
    caches = (image_formats.image_endings, image_formats.readable_formats)
    monkeypatch.setattr(image_formats, "_registered", lambda plugin: False)
    for each in caches:
        each.cache_clear()
    yield
    for each in caches:
        each.cache_clear()


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """torch.compile traces, but makes no kernels, which takes a minute; the size of each graph is recorded."""
    compile_as_always, sizes = torch.compile, []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        sizes.append(len(graph.graph.nodes))
        return graph.forward

    monkeypatch.setattr(
        torch, "compile", lambda network, *, dynamic, mode: compile_as_always(network, dynamic=dynamic, backend=backend)
    )
    yield sizes
    torch.compiler.reset()


@pytest.fixture
def images(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder of noisy images of these sizes, each with a caption."""

    def make(*sizes: tuple[int, int]) -> Path:
        folder = tmp_path / f"images-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        for number, (width, height) in enumerate(sizes):
            pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
            (folder / f"{number}.txt").write_text(TAGS[number % len(TAGS)], encoding="utf-8")
        return folder

    return make


@pytest.fixture
def dataset(images: Callable[..., Path]) -> Callable[..., Dataset]:
    """Makes a dataset for the word `x-word`; images keep their sizes."""
    folders: dict[tuple[tuple[int, int], ...], Path] = {}

    def make(
        *sizes: tuple[int, int], model: Any = None, prompter: dict[str, Any] | None = None, seed: int = 0, **options: Any
    ) -> Dataset:
        sizes = sizes or ((16, 16),) * 5
        folder = folders.get(sizes) or folders.setdefault(sizes, images(*sizes))
        words = Prompter("x-word", ("a photo of [name], [filewords]", "[filewords] [name]"), **(prompter or {}))
        return load_dataset(folder, model or TinyModel(), Frame(None), words, DatasetOptions(seed=seed, **options))

    return make


@pytest.fixture
def trainer(dataset: Callable[..., Dataset]) -> Callable[..., Trainer]:
    """Makes a trainer of `x-word` with two vectors; options are TrainConfig's."""

    def make(
        model: Any = None,
        data: Dataset | None = None,
        state: TrainState | None = None,
        step: int = 0,
        lora: Any = None,
        **options: Any,
    ) -> Trainer:
        model, generator = model or TinyModel(), torch.Generator().manual_seed(1)
        vectors = {encoder: torch.randn(2, width, generator=generator) * 0.02 for encoder, width in model.widths.items()}
        config = TrainConfig(**{"max_steps": 10, **options})
        return Trainer(model, data or dataset(), Embedding("x-word", vectors, step), config, state, lora=lora)

    return make


@pytest.fixture
def hangup_heard() -> Iterator[None]:
    """SIGHUP does what it usually does, here and in programs that are started, also where the tests run under nohup."""
    if not hasattr(signal, "SIGHUP"):  # on Windows
        yield
        return
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
