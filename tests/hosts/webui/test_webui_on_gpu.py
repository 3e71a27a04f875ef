"""The WebUI's path on a real GPU, over real `ldm` modules: half precision under autocast, in each memory mode.

`tests/gpu/run_all.py` runs it where the package ldm is installed. With TI_TRAINER_GPU_TESTS=cpu it runs on the CPU in
float32, as a check of the test.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from test_webui_model import batch

from ti_trainer.hosts.webui.model import RuntimeSettings, WebuiModel
from ti_trainer.hosts.webui.model_spec import spec_of, text_stages
from ti_trainer.hosts.webui.text import prompt_encoders
from ti_trainer.model import ImageConditioning
from ti_trainer.offload.plan import PLANS
from ti_trainer.training.step import training_loss

DEVICE = torch.device(os.environ.get("TI_TRAINER_GPU_TESTS", "cuda"))
ON_GPU = DEVICE.type == "cuda"
HALF = torch.float16 if ON_GPU else torch.float32  # autocast on a CPU leaves out norms
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(ON_GPU and not torch.cuda.is_available(), reason="there is no GPU")]


def model_over(network: Any, dtype: torch.dtype) -> WebuiModel:
    autocast: dict[str, Callable[..., Any]] = {}
    if dtype != torch.float32:
        autocast["autocast"] = partial(torch.autocast, DEVICE.type, dtype)
    texts = prompt_encoders(network, DEVICE, text_stages(network)[0].emphasize)
    return WebuiModel(network, spec_of(network), texts, RuntimeSettings(DEVICE, dtype, **autocast))


def gradients(model: WebuiModel, words: dict[str, dict[str, torch.Tensor]]) -> torch.Tensor:
    on_device = {name: {key: each.detach().to(DEVICE) for key, each in word.items()} for name, word in words.items()}
    leaves = [each.requires_grad_() for each in on_device["zz-cat"].values()]
    fed, images = batch(), batch().images
    assert images.masked is not None
    fed = replace(
        fed,
        latents=fed.latents.to(DEVICE),
        noise=fed.noise.to(DEVICE),
        timesteps=fed.timesteps.to(DEVICE),
        images=ImageConditioning(images.sizes.to(DEVICE), images.masked.to(DEVICE)),
    )
    with model.training():
        loss = training_loss(model, fed, on_device).mean() * 1024  # as a GradScaler would
        return torch.cat([each.flatten() / 1024 for each in torch.autograd.grad(loss, leaves)])


@pytest.mark.parametrize("sd_model", ["SD 1.x", "SD 2.x", "SDXL"], indirect=True)
def test_gradients_in_half_precision_are_those_of_float32(sd_model: Any, words: Any) -> None:
    sd_model.to(DEVICE)
    wanted = gradients(model_over(sd_model, torch.float32), words)
    alphas_cumprod, sd_model.alphas_cumprod = sd_model.alphas_cumprod, None
    sd_model.to(HALF)
    sd_model.alphas_cumprod = alphas_cumprod
    model = model_over(sd_model, HALF)
    exact = gradients(model, words)
    assert exact.dtype == torch.float32
    assert (exact - wanted).norm() < 0.1 * wanted.norm()
    for mode in PLANS:
        model.fit_memory(64, mode=mode)
        limit = 0.2 if mode == "8bit" else 1e-2
        assert (gradients(model, words) - exact).norm() < limit * exact.norm(), mode
