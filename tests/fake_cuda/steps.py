"""Training steps on the pretended device. `test_fake_cuda.py` runs this file, in a process with the device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from device import CUDA, FakeDevice, fake_cuda
from diffusers_models import model_of, tiny
from updates import DREAMARTIST, check, trainer_for

from ti_trainer.hosts.diffusers.loading import DTYPES
from ti_trainer.model import MemoryMode
from ti_trainer.training.pixel_loss import PixelLoss

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
