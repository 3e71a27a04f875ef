"""The spec of loaded components: family, prediction type and noise schedule."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ti_trainer.embedding import FAMILIES
from ti_trainer.errors import ModelError
from ti_trainer.functional.objective import zero_terminal_snr
from ti_trainer.host import ModelOptions
from ti_trainer.hosts.diffusers.library import DDPMScheduler, UNet2DConditionModel
from ti_trainer.hosts.diffusers.text import TextEncoder
from ti_trainer.model import INPAINTING_CHANNELS, ModelSpec

EXPECTED = "expected Stable Diffusion 1.x, 2.x or SDXL, or one of their inpainting models"
OTHER_CHANNELS = {5: "a depth or upscaling model", 7: "an upscaling model", 8: "an InstructPix2Pix model"}
SD2_V_MEAN = -1.0  # the mean output for a constant is below this if a U-Net predicts v, see `predicts_v`


def spec_of(
    unet: UNet2DConditionModel, text_encoders: Sequence[TextEncoder], scheduler: DDPMScheduler, options: ModelOptions
) -> ModelSpec:
    """The spec with the user's choices; ConfigError if these contradict each other."""
    config = scheduler.config
    spec = ModelSpec(
        _family(unet, text_encoders),
        config.prediction_type,
        bool(config.get("rescale_betas_zero_snr")),
        unet.config.in_channels == INPAINTING_CHANNELS,
    )
    return options.of(spec)


def noise_schedule(scheduler: DDPMScheduler, spec: ModelSpec) -> Tensor:
    """alphas_cumprod (number of training timesteps,) of the model's training."""
    plain = DDPMScheduler.from_config(scheduler.config, rescale_betas_zero_snr=False).alphas_cumprod
    return zero_terminal_snr(plain) if spec.zero_terminal_snr else plain


def takes_clip_skip(spec: ModelSpec) -> bool:
    """False for SD 2.x and SDXL: they use a fixed layer, in the WebUI as well."""
    return spec.family not in ("SD 2.x", "SDXL")


def refuse_unknown(
    unet: UNet2DConditionModel, text_encoders: Sequence[TextEncoder], scheduler: DDPMScheduler, name: str
) -> None:
    """ModelError for a U-Net with other inputs, or that predicts neither the noise nor v."""
    channels = unet.config.in_channels
    if channels not in (4, INPAINTING_CHANNELS):
        what = OTHER_CHANNELS.get(channels, f"a model with {channels} input channels")
        message = f"{name} is {what}; {EXPECTED}."
        raise ModelError(message)
    if unet.config.class_embed_type or unet.config.addition_embed_type not in (None, "text_time"):
        message = f"{name} is conditioned on more than text and sizes (unCLIP?), which cannot be trained."
        raise ModelError(message)
    width = sum(each.width for each in text_encoders)
    if unet.config.cross_attention_dim != width:
        message = f"{name}: the U-Net takes text of width {unet.config.cross_attention_dim}, its text encoders give {width}."
        raise ModelError(message)
    if scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
        message = f"{name} predicts {scheduler.config.prediction_type}; expected epsilon or v_prediction."
        raise ModelError(message)


@torch.no_grad()
def predicts_v(unet: UNet2DConditionModel) -> bool:
    """Whether a U-Net of SD 2.x predicts v. Its files do not say, so, as in the WebUI, it is run on a constant."""
    ones = torch.full((1, unet.config.in_channels, 8, 8), 0.5)
    text = torch.full((1, 2, unet.config.cross_attention_dim), 0.5)
    output = unet(ones, torch.tensor([999]), text, return_dict=False)[0]
    return (output - 0.5).mean().item() < SD2_V_MEAN


def _family(unet: UNet2DConditionModel, text_encoders: Sequence[TextEncoder]) -> str:
    if len(text_encoders) == 2:
        return "SDXL"
    if unet.config.use_linear_projection:
        return "SD 2.x"
    width = ((text_encoders[0].name, text_encoders[0].width),)
    return FAMILIES.get(width, "SD 1.x")
