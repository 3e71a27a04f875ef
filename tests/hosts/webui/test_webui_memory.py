"""Little memory in the WebUI: what gives way changes no number, or nearly none, for each family over real modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from test_webui_model import batch
from torch.nn import functional as F

from ti_trainer.model import ImageConditioning
from ti_trainer.offload.plan import ACTIVATIONS_UNDER_AUTOCAST, GIB, OVERHEAD, PLANS, WORKING, MemoryPlan
from ti_trainer.training.step import training_loss

# All text encoders and inputs: inpainting of SD 1.x is between SD 1.x and inpainting of SDXL.
some_families = pytest.mark.parametrize("sd_model", ["SD 2.x", "SDXL inpainting", "sgm SDXL inpainting"], indirect=True)


@some_families
@pytest.mark.parametrize("mode", ["checkpointing", "offload-text", "offload-all", "8bit"])
def test_with_less_memory_the_numbers_are_the_same(
    mode: str, webui_model: Callable[..., Any], sd_model: Any, words: dict[str, dict[str, torch.Tensor]]
) -> None:
    """As on a GPU with little memory; the original code's own way to compute twice fails with frozen weights."""
    model, calls = webui_model(), []
    unet = sd_model.model.diffusion_model
    images = ImageConditioning(
        torch.tensor([[64.0, 64, 0, 0, 64, 64]]), model.encode_masked(torch.zeros(1, 3, 64, 64), None)
    )
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))

    def gradients() -> list[torch.Tensor]:
        vectors = words["zz-cat"].values()
        with model.training():
            cond = model.encode_prompts(["a zz-cat"], words)
            prediction = model.predict(latents, torch.tensor([500]), cond, images)
            return [prediction.detach(), *torch.autograd.grad(prediction.square().mean(), list(vectors))]

    wanted = gradients()
    weights = {name: each.clone() for name, each in sd_model.state_dict().items()}
    assert model.fit_memory(64, mode=mode)
    hook = unet.middle_block[0].in_layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    found = gradients()
    hook.remove()
    assert len(calls) == 2
    assert not any("forward" in vars(each) for each in sd_model.modules())
    assert all(torch.equal(each, weights[name]) for name, each in sd_model.state_dict().items())
    for one, other in zip(found, wanted, strict=True):
        if mode == "8bit":
            assert 0 < (one - other).norm() < 0.1 * other.norm()
        else:
            torch.testing.assert_close(one, other, rtol=0, atol=1e-7)


@some_families
def test_when_memory_runs_out_in_training_the_next_measure_is_taken(
    webui_model: Callable[..., Any], sd_model: Any, words: Any
) -> None:
    model, error = webui_model(), torch.cuda.OutOfMemoryError("CUDA out of memory")
    vectors = list(words["zz-cat"].values())

    def gradients() -> list[torch.Tensor]:
        return list(torch.autograd.grad(training_loss(model, batch(), words).mean(), vectors))

    with model.training():
        wanted = gradients()
        assert "gradient checkpointing" in model.reduce_memory(error)
        assert model.reduce_memory(error) == model.reduce_memory(ValueError()) == "", "weights are in RAM already"
        for mode in ("checkpointing", "offload-text", "offload-all"):
            model.memory.use(PLANS[mode])
            with model.restored():
                assert not any("forward" in vars(each) for each in sd_model.model.diffusion_model.modules())
                assert all(each.numel() for each in sd_model.parameters())
            for one, other in zip(gradients(), wanted, strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=1e-7)
    assert not any("forward" in vars(each) for each in sd_model.modules())


@some_families
@pytest.mark.parametrize("checkpointing", [False, True])
def test_in_half_precision_under_autocast_gradients_are_nearly_the_same(
    checkpointing: bool, webui_model: Callable[..., Any], sd_model: Any, words: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, but for the kernels: there autocast computes norms in float32."""
    for name in ("layer_norm", "group_norm"):
        monkeypatch.setattr(F, name, _in_float32(getattr(F, name)))
    vectors = list(words["zz-cat"].values())

    def gradients(model: Any) -> list[torch.Tensor]:
        model.memory.plan = MemoryPlan(checkpointing=float(checkpointing))
        with model.training():
            loss = training_loss(model, batch(), words).mean() * 1024  # as a GradScaler would
            return [each / 1024 for each in torch.autograd.grad(loss, vectors)]

    wanted = gradients(webui_model())
    sd_model.model.half()
    getattr(sd_model, "conditioner", sd_model.cond_stage_model).half()
    autocast = partial(torch.autocast, "cpu", torch.float16)
    for one, other in zip(gradients(webui_model(unet_dtype=torch.float16, autocast=autocast)), wanted, strict=True):
        assert (one - other).norm() < 0.05 * other.norm()


def _in_float32(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def single(value: Any) -> Any:
        return value.float() if isinstance(value, torch.Tensor) else value

    return lambda *given, **named: function(*map(single, given), **{key: single(value) for key, value in named.items()})


@pytest.mark.parametrize("medvram", [False, True])
def test_memory_is_asked_of_the_device_and_what_is_to_come_is_taken_off(
    medvram: bool, webui_model: Callable[..., Any], sd_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def free(index: object) -> tuple[int, int]:
        assert index == 0, "torch 2.1 takes no device without an index"
        return 4 * GIB, 8 * GIB

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", free)
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda _: 0)
    sd_model.lowvram = medvram
    model = webui_model(unet_dtype=torch.float16)
    model.memory.networks = replace(model.memory.networks, device=torch.device("cuda"))
    weights = sum(each.numel() * 4 for part in (sd_model.model, sd_model.cond_stage_model) for each in part.parameters())
    latent_pixels = int((4 * GIB - OVERHEAD - weights) / (ACTIVATIONS_UNDER_AUTOCAST["SD 1.x"] + WORKING))
    message = model.fit_memory(latent_pixels - 100)
    assert "GB of free GPU memory." in message
    assert not model.memory.plan.checkpointing
    assert "gradient checkpointing of" in model.fit_memory(latent_pixels + 100)
    assert 0 < model.memory.plan.checkpointing < 0.2
