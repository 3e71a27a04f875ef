"""Memory on the pretended device: what of a model is on it, and when. `test_fake_cuda.py` runs this file."""

from __future__ import annotations

import pytest
import torch
import updates
from device import CPU, CUDA, GIB, fake_cuda, filled
from diffusers_models import model_of, tiny
from models import NAME

from ti_trainer import tiny_model
from ti_trainer.data.images import Frame
from ti_trainer.data.loading import DatasetOptions, load_dataset
from ti_trainer.data.prompts import Prompter
from ti_trainer.hosts.diffusers import shapes
from ti_trainer.hosts.diffusers.model import DiffusersModel
from ti_trainer.offload.plan import bytes_of


def test_weights_that_a_plan_offloads_are_never_on_the_gpu() -> None:
    """Not even while the model is loaded: a GPU that is smaller than the model can train it block by block."""
    with fake_cuda() as device:
        model = model_of(tiny("sdxl", torch.float16), "fp16")
        assert device.allocated < 2**13, "only the noise schedule"
        with torch.no_grad():
            model.encode_images(torch.zeros(1, 3, 64, 64))
        assert device.allocated == pytest.approx(bytes_of(model.vae), rel=0.15), "only what was used"
        trainer = updates.trainer_for(model)
        device.forget()
        model.fit_memory(64, mode="offload-all")
        trained = (model.unet, *(each.module for each in model.text_encoders))
        left = bytes_of(*trained)  # offloaded weights are empty
        assert device.peak == pytest.approx(left, rel=0.05)
        assert model.vae.device.type == "cpu"
        updates.update(trainer)
        preview(model)
        model.use_all_memory()
        assert all(each.numel() for module in model.modules for each in module.parameters())
        assert device.allocated == pytest.approx(left, rel=0.05)


def test_latents_wait_in_ram_for_their_turn() -> None:
    with fake_cuda() as device:
        model = model_of(tiny("sd1-inpainting", torch.float16), "fp16")
        options = DatasetOptions(latent_sampling="random")
        dataset = load_dataset(tiny_model.DEMO, model, Frame((64, 64)), Prompter(NAME, ("[name]",)), options, most=2)
        assert device.allocated == pytest.approx(bytes_of(model.vae), rel=0.15)
        for each in dataset.items:
            assert {each.latents.device, each.std.device, each.masked.device} == {CPU}


def test_large_images_are_encoded_and_decoded_in_tiles_where_there_is_no_room_for_them() -> None:
    """The published shape, in float32 as SDXL's needs it: 1.4 and 1.7 GB beside its weights, or 0.8 GB in tiles."""
    with fake_cuda() as device:
        with torch.device("meta"):
            vae = shapes.vae(0.13025)
        filled(vae)
        model = model_of(tiny("sd1", torch.float32)._replace(vae=vae), "fp32")
        for device.total, peak in ((4 * GIB, 2.0), (1.3 * GIB, 1.1)):
            device.forget()
            with torch.no_grad():
                mean, _ = model.encode_images(torch.zeros(1, 3, 768, 768))
                pixels = model.decode(mean)
            assert (mean.shape, pixels.shape) == ((1, 4, 96, 96), (1, 3, 768, 768))
            assert (model.vae.device, model.vae.dtype, model.vae.use_tiling) == (CUDA, torch.float32, False)
            del mean, pixels
            assert device.peak / GIB == pytest.approx(peak, abs=0.1)


def preview(model: DiffusersModel) -> None:
    """What generating an image needs: diffusers' samplers do not work with fake tensors."""
    vectors = {NAME: {key: torch.zeros(2, width, device=model.device) for key, width in model.widths.items()}}
    with torch.no_grad():
        model.encode_prompts(["", f"a photo of {NAME}"], vectors)
        pixels = model.decode(torch.zeros(1, 4, 8, 8, device=model.device))
    assert pixels.shape == (1, 3, 64, 64)
    assert pixels.device.type == "cuda"
