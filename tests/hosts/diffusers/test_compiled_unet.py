"""A run with the U-Net compiled is the run without: its steps, its previews, its end and its continuation."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import pytest
import torch
from diffusers import UNet2DConditionModel

from ti_trainer.config.training import TrainConfig
from ti_trainer.formats import embeddings_dir
from ti_trainer.hosts.diffusers.host import StandaloneHost
from ti_trainer.offload.compiling import NO_MEMORY
from ti_trainer.runs.run_folder import Run
from ti_trainer.runs.session import Session
from ti_trainer.training.events import Compiling, Event, MemoryReduced, StepDone
from ti_trainer.training.trainer import Trainer

CONFIG = TrainConfig(
    max_steps=6, learning_rate="0.01", width=64, height=64, preview_every=3, preview_sampling_steps=1, evaluate_every=3,
    save_every=0, compile="on",
)  # fmt: skip


def small_unet() -> UNet2DConditionModel:
    """A way down, one up, one attention: to trace it takes seconds."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        mid_block_type=None,
        up_block_types=("UpBlock2D",),
        cross_attention_dim=families.CLIP_L,
        attention_head_dim=4,
    )


class Watched:
    """A session on a small U-Net of SD 1.x, its events, and what it said."""

    def __init__(self, folder: Path, images: Path) -> None:
        model = families.save("sd1", folder / "sd1")
        small_unet().save_pretrained(model / "unet")
        self.host = StandaloneHost(str(model), "cpu", folder / "embeddings", folder / "logs")
        embeddings_dir.create(self.host.embeddings_dir, self.host.open_model(), "x-word", "red cat", 2)
        self.events: list[Event] = []
        self.said: list[str] = []
        self.images = images

    def train(self, config: TrainConfig = CONFIG, resume: Run | None = None) -> torch.Tensor:
        session = Session(self.host, "x-word", self.images, config, resume, warn=self.warn, say=self.said.append)
        result = session.train(lambda trainer, run: [self.events.append])
        return result.embedding.vectors["clip_l"]

    def warn(self, text: str) -> None:
        if not text.startswith("Only 2 images"):  # true, and of no interest here
            self.said.append(text)


@pytest.fixture
def watched(tmp_path: Path, images: Callable[..., Path]) -> Callable[[], Watched]:
    return lambda: Watched(tmp_path / str(len(list(tmp_path.iterdir()))), images((64, 64), (64, 64)))


def test_a_run_and_its_continuation_are_the_same_and_all_is_given_back(
    watched: Callable[[], Watched], graphs: list[int]
) -> None:
    plain, ours = watched(), watched()
    wanted = plain.train(replace(CONFIG, compile="off"))
    assert graphs == plain.said == []
    ours.train(replace(CONFIG, max_steps=4))
    assert len(graphs) == 1  # neither previews nor the validation loss
    assert [type(each) for each in ours.events[:2]] == [Compiling, StepDone]
    assert [each.step for each in ours.events if isinstance(each, Compiling)] == [0]
    assert len(ours.said) == 1
    assert "The network is compiled" in ours.said[0]
    model = ours.host.open_model()
    assert model.memory.compiled is None
    assert "forward" not in vars(model.unet)
    found = ours.train(resume=Run.latest(ours.host.log_dir, "x-word"))
    assert torch.equal(found, wanted)  # kernels are the same here
    assert len(graphs) == 2


def test_where_compiling_fails_training_continues_uncompiled(
    watched: Callable[[], Watched], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With the error of a real compiler: tests/offload/test_compiled.py."""

    def fail(*_: Any) -> None:
        message = "no-such-compiler"
        raise AssertionError(message)

    compile_as_always, config = torch.compile, replace(CONFIG, max_steps=2, preview_every=0, evaluate_every=0)
    monkeypatch.setattr(torch, "compile", lambda network, **_: compile_as_always(network, backend=fail))
    plain, ours = watched(), watched()
    wanted = plain.train(replace(config, compile="off"))
    with caplog.at_level(logging.WARNING):
        found = ours.train(config)
    assert torch.equal(found, wanted)
    told = [each for each in ours.events if isinstance(each, MemoryReduced)]
    assert [each.step for each in told] == [1]
    assert told[0].message.startswith("Compiling the network failed (")
    assert "no-such-compiler" in told[0].message
    assert told[0].message in ours.said
    assert caplog.text == ""


class BrokenError(Exception):
    """No RuntimeError."""


def test_errors_of_others_surface(watched: Callable[[], Watched], graphs: list[int], monkeypatch: Any) -> None:
    ours = watched()
    model = ours.host.open_model()
    assert model.reduce_memory(BrokenError()) == ""

    def broken(trainer: Trainer, loss: Any, prompts: Any) -> None:
        raise BrokenError

    monkeypatch.setattr("ti_trainer.training.step.denoising_loss", broken)
    with pytest.raises(BrokenError):
        ours.train()
    assert model.memory.compiled is None


def test_where_memory_is_short_nothing_is_compiled(embedded_model: Any) -> None:
    model = replace(embedded_model)
    model.fit_memory(64, mode="checkpointing")
    try:
        assert [model.compile(when, 9**9, 1, lambda: None) for when in ("auto", "off", "on")] == ["", "", NO_MEMORY]
        assert model.memory.compiled is None
    finally:
        model.use_all_memory()
