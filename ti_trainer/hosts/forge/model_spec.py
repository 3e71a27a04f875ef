"""The spec of Forge's loaded checkpoint, and which checkpoints cannot be trained. This module does not import Forge's."""

from __future__ import annotations

from typing import Any

import torch

from ti_trainer.errors import ModelError
from ti_trainer.host import ModelOptions
from ti_trainer.hosts.forge.engine import text_engines
from ti_trainer.hosts.webui.model_spec import TRAINABLE
from ti_trainer.model import INPAINTING_CHANNELS, ModelSpec

FAMILIES = {"is_sd1": "SD 1.x", "is_sd2": "SD 2.x", "is_sdxl": "SDXL"}  # by the engine's attributes
PREDICTIONS = ("epsilon", "v_prediction")  # Forge's others are const (rectified flow) and edm
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def spec_of(engine: Any, options: ModelOptions | None = None, *, zero_terminal_snr: bool = False) -> ModelSpec:
    """The checkpoint's spec with the user's choices. `zero_terminal_snr`: whether Forge is set to sample so.

    ModelError that names its kind, if it cannot be trained; ConfigError for options that contradict each other.
    """
    name = engine.sd_checkpoint_info.model_name
    if unfit := _unfit(engine):
        message = f"{name} is {unfit}. {TRAINABLE}"
        raise ModelError(message)
    if coarse := _coarse_dtype(engine):
        message = (
            f"{name} is stored in 8 bits or less ({coarse}), which is too coarse for training: "
            "set Diffusion in Low Bits to Automatic, or choose another checkpoint."
        )
        raise ModelError(message)
    unet = engine.forge_objects_original.unet.model
    zero_terminal_snr |= bool(getattr(engine.model_config, "ztsnr", False))
    inpainting = unet.diffusion_model.in_channels == INPAINTING_CHANNELS
    found = ModelSpec(_family(engine), unet.predictor.prediction_type, zero_terminal_snr, inpainting)
    return (options or ModelOptions()).of(found)


def _family(engine: Any) -> str:
    return next((family for flag, family in FAMILIES.items() if getattr(engine, flag, False)), "")


def _unfit(engine: Any) -> str:
    """The kind of a model that cannot be trained, or an empty string."""
    family = _family(engine)
    if not family:
        return f"a {type(engine).__name__} model"
    if family == "SDXL" and len(text_engines(engine)) != 2:
        return "an SDXL refiner, which only finishes images of another model"
    unet = engine.forge_objects_original.unet.model
    prediction = getattr(unet.predictor, "prediction_type", "unknown")
    schedule = getattr(getattr(engine.model_config, "model_type", None), "name", "")
    if prediction not in PREDICTIONS or not hasattr(unet.predictor, "alphas_cumprod"):
        return f"a model that predicts neither noise nor v ({prediction})"
    if "EDM" in schedule:
        return "a model with EDM's noise schedule"
    channels = unet.diffusion_model.in_channels
    if channels not in (4, INPAINTING_CHANNELS) or (family != "SDXL" and unet.diffusion_model.num_classes is not None):
        return f"a model conditioned on more than text ({channels} channels: pix2pix, depth, unCLIP?)"
    return ""


def _coarse_dtype(engine: Any) -> str:
    """How the U-Net or a text encoder is stored, if that is not as floating-point numbers of 16 or 32 bits."""
    objects = engine.forge_objects_original
    stored = getattr(objects.unet.model.diffusion_model, "storage_dtype", torch.float32)
    if stored not in DTYPES:
        return str(stored).removeprefix("torch.")
    for network in (objects.unet.model.diffusion_model, objects.clip.cond_stage_model):
        for weight in network.parameters():
            if weight.ndim > 1 and (weight.dtype not in DTYPES or type(weight.data) is not torch.Tensor):
                return str(weight.dtype).removeprefix("torch.")
    return ""
