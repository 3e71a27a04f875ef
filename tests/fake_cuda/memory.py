"""Memory on the pretended device: a GPU that is smaller than the model. `test_fake_cuda.py` runs this file."""

from __future__ import annotations

import pytest
import steps
import torch
from device import FakeDevice, fake_cuda
from models import model_of, tiny

from ti_trainer.hosts.diffusers.model import DiffusersModel
from ti_trainer.offload.plan import PLANS, bytes_of


def test_a_model_larger_than_the_gpu_is_trained_block_by_block() -> None:
    """The whole model is never on the device, from the first byte on: more memory than there is raises an error."""
    with fake_cuda():
        model = model_of(tiny("sdxl", torch.float16), "fp16")
        tables = bytes_of(*(each.table for each in model.text_encoders))
        weights = bytes_of(*model.modules)
    with fake_cuda(total=tables + 0.7 * (weights - tables)) as device:
        model = model_of(tiny("sdxl", torch.float16), "fp16")
        with torch.no_grad():
            model.encode_images(torch.zeros(1, 3, 64, 64))
        assert device.allocated == pytest.approx(bytes_of(model.vae), rel=0.05), "only what was used"
        trainer = steps.trainer_for(model)
        model.fit_memory(64)
        assert model.memory.plan == PLANS["offload-all"]
        steps.update(trainer)
        preview(model, device)
        model.use_all_memory()
        assert all(each.numel() for module in model.modules for each in module.parameters())


def preview(model: DiffusersModel, device: FakeDevice) -> None:
    vectors = {steps.NAME: {key: torch.zeros(2, width, device=model.device) for key, width in model.widths.items()}}
    with torch.no_grad():
        model.encode_prompts(["", f"a photo of {steps.NAME}"], vectors)
        pixels = model.decode(torch.zeros(1, 4, 8, 8, device=model.device))
    assert pixels.shape == (1, 3, 64, 64)
    assert pixels.device.type == "cuda"
