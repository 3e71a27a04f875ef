"""Training steps on the pretended device. `test_fake_cuda.py` runs this file, in a process with the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from device import CUDA, FakeDevice, fake_cuda
from models import NAME, components, dataset_for, embeddings_for, model_of

from ti_trainer.config.training import TrainConfig
from ti_trainer.hosts.diffusers.loading import DTYPES
from ti_trainer.hosts.diffusers.model import DiffusersModel
from ti_trainer.offload.plan import PLANS, MemoryPlan
from ti_trainer.training.pixel_loss import PixelLoss
from ti_trainer.training.trainer import Trainer


@pytest.fixture
def device() -> Iterator[FakeDevice]:
    with fake_cuda() as device:
        yield device


def trainer_for(
    model: DiffusersModel, *, negative: bool = False, pixel_loss: PixelLoss | None = None, **options: Any
) -> Trainer:
    config = TrainConfig(**{"max_steps": 1000, "negative": negative, **options})
    pixels = torch.zeros(3, 64, 64, dtype=torch.uint8) if pixel_loss else None
    dataset = dataset_for(model, negative=f"{NAME}-neg" if negative else "", pixels=pixels)
    names = (NAME, f"{NAME}-neg") if negative else (NAME,)
    embedding, *others = embeddings_for(model, 2, *names)
    return Trainer(model, dataset, embedding, config, None, *others or (None,), pixel_loss)


def updates(trainer: Trainer, count: int = 2) -> None:
    """Ordinary updates: those at which neither the loss scale is still found nor losses are checked."""
    active, batches = trainer.active_trials, trainer._batches()
    trainer._settles_at = 0
    with trainer.model.training():
        for _ in range(count):
            losses, _, _ = trainer._update(active, batches, lambda: False)
            assert (losses.device, losses.dtype) == (CUDA, torch.float32)


def check(trainer: Trainer, device: FakeDevice) -> None:
    """Everything is where it has to be, and the CPU waits for nothing."""
    seen: list[tuple[torch.device, torch.dtype]] = []
    gradients = trainer._objective.gradients

    def noted(*args: Any) -> Any:
        losses, found = gradients(*args)
        seen.extend((each.device, each.dtype) for each in found)
        return losses, found

    object.__setattr__(trainer._objective, "gradients", noted)
    with device.measuring():
        updates(trainer)
    assert set(seen) == {(CUDA, torch.float32)}
    for each in trainer.trials:
        assert {(one.device, one.dtype) for one in each.parameters} == {(CUDA, torch.float32)}
    assert not device.waits, "\n".join(dict.fromkeys(device.waits))


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("family", ["sd1", "sd2-v", "sdxl", "sd1-inpainting", "sdxl-inpainting"])
def test_a_step_of_each_family(family: str, precision: str, device: FakeDevice) -> None:
    model = model_of(components(family, DTYPES[precision]), precision)
    assert (model.device.type, model.dtype) == ("cuda", DTYPES[precision])
    check(trainer_for(model), device)


OPTIONS: dict[str, dict[str, Any]] = {
    "dreamartist": {"negative": True},
    "pixel loss": {"pixel_loss": PixelLoss(1.0)},
    "trials": {"trials": 2},
    "everything": {"negative": True, "ema_rate": 0.9, "clip_grad": "norm", "latent_sampling": "random", "batch_size": 2},
    "clip by value": {"clip_grad": "value", "loss_weighting": "min_snr"},
    "sphere": {"optimizer": "sphere"},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_step_with_options(family: str, name: str, device: FakeDevice) -> None:
    check(trainer_for(model_of(components(family, torch.float16), "fp16"), **OPTIONS[name]), device)


PARTLY = {**PLANS, "partly": MemoryPlan(checkpointing=0.4)}


@pytest.mark.parametrize("mode", PARTLY)
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_step_of_each_memory_mode(family: str, mode: str, device: FakeDevice) -> None:
    model = model_of(components(family, torch.float16), "fp16")
    trainer = trainer_for(model, negative=True)
    model.memory.use(PARTLY[mode])
    check(trainer, device)
    model.use_all_memory()
    assert {each.device for module in model.modules for each in module.parameters()} == {CUDA}
