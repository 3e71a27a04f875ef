"""Training steps on the pretended device. `test_fake_cuda.py` runs this file, in a process with the device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from device import CUDA, FakeDevice, fake_cuda
from models import NAME, dataset_for, embeddings_for, model_of, tiny

from ti_trainer.config.training import TrainConfig
from ti_trainer.hosts.diffusers.loading import DTYPES
from ti_trainer.hosts.diffusers.model import DiffusersModel
from ti_trainer.model import MemoryMode
from ti_trainer.training.pixel_loss import PixelLoss
from ti_trainer.training.trainer import Trainer

DREAMARTIST = {"negative": True, "ema_rate": 0.9, "clip_grad": "norm", "latent_sampling": "random", "batch_size": 2}
# Few, since each takes a second. With a loss scale, several trials wait: each has to know whether its update was skipped.
CASES: dict[tuple[str, str], dict[str, Any]] = {
    ("sd1", "bf16"): {"pixel_loss": PixelLoss(1.0), "clip_grad": "value", "loss_weighting": "min-snr"},
    ("sd2-v", "fp16"): {"optimizer": "sphere"},
    ("sd1-inpainting", "fp32"): {"trials": 2},
}
MODES: tuple[MemoryMode, ...] = ("8bit", "offload-all")  # with checkpointing, and the VAE in RAM


@pytest.fixture(scope="module")
def device() -> Iterator[FakeDevice]:
    with fake_cuda() as device:
        yield device


def trainer_for(
    model: DiffusersModel, size_px: int = 64, *, negative: bool = False, pixel_loss: PixelLoss | None = None, **options: Any
) -> Trainer:
    config = TrainConfig(**{"max_steps": 1000, "negative": negative, **options})
    pixels = torch.zeros(3, size_px, size_px, dtype=torch.uint8) if pixel_loss else None
    random = config.latent_sampling == "random"
    dataset = dataset_for(model, size_px, negative=f"{NAME}-neg" if negative else "", random=random, pixels=pixels)
    embedding, *others = embeddings_for(model, 2, *(NAME, f"{NAME}-neg") if negative else (NAME,))
    return Trainer(model, dataset, embedding, config, None, *others or (None,), pixel_loss)


def update(trainer: Trainer) -> list[torch.Tensor]:
    """An ordinary update, at which neither the loss scale is still found nor losses are checked; returns its gradients."""
    active, batches, found = trainer.active_trials, trainer._batches(), []
    trainer._settles_at = 0
    gradients = trainer._objective.gradients

    def noted(*args: Any) -> Any:
        losses, some = gradients(*args)
        found.extend(some)
        return losses, some

    object.__setattr__(trainer._objective, "gradients", noted)
    with trainer.model.training():
        losses, _, _ = trainer._update(active, batches, lambda: False)
    assert (losses.device, losses.dtype) == (CUDA, torch.float32)
    return found


def check(trainer: Trainer, device: FakeDevice) -> None:
    """Everything is where it has to be, and the CPU waits for nothing."""
    with device.watching() as waits:
        found = update(trainer)
    parameters = [one for each in trainer.trials for one in each.parameters]
    assert len(found) == len(parameters)
    assert {(each.device, each.dtype) for each in (*found, *parameters)} == {(CUDA, torch.float32)}
    assert not waits, "\n".join(dict.fromkeys(waits))


@pytest.mark.parametrize(("family", "precision"), CASES)
def test_a_step_of_each_family(family: str, precision: str, device: FakeDevice) -> None:
    model, options = model_of(tiny(family, DTYPES[precision]), precision), CASES[family, precision]
    assert (model.device.type, model.dtype) == ("cuda", DTYPES[precision])
    model.fit_memory(64, decoded=64 if "pixel_loss" in options else 0)
    check(trainer_for(model, **options), device)


def test_a_step_of_each_memory_mode(device: FakeDevice) -> None:
    model = model_of(tiny("sdxl", torch.float16), "fp16")
    trainer = trainer_for(model, **DREAMARTIST)
    for mode in MODES:
        model.fit_memory(64, mode=mode)
        check(trainer, device)
    model.use_all_memory()
    model.memory.place()
    weights = [each for module in model.modules[:1] + model.modules[2:] for each in module.parameters()]
    assert {each.device for each in weights} == {CUDA}
    assert all(each.numel() for each in weights)
