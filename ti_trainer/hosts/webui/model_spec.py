"""What the checkpoint is that the WebUI has loaded: its family, what it predicts, its noise schedule.

Knows none of the host's modules, and of a file no more than the names of its tensors.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ti_trainer.errors import ModelError
from ti_trainer.host import ModelOptions
from ti_trainer.model import INPAINTING_CHANNELS, ModelSpec, PredictionType

PREDICTIONS: dict[str, PredictionType] = {"eps": "epsilon", "v": "v_prediction"}  # the host's names
FAMILIES = {"FrozenCLIPEmbedder": "SD 1.x", "FrozenOpenCLIPEmbedder": "SD 2.x"}  # by the class of the text encoder
SDXL_ENCODERS = {"FrozenCLIPEmbedder": "clip_l", "FrozenOpenCLIPEmbedder2": "clip_g"}
SDXL_SIZES = ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")  # as in ImageConditioning.sizes
V_MARK, ZERO_TERMINAL_SNR_MARK = "v_pred", "ztsnr"  # empty tensors by which SDXL files say so; the host passes over them
EDM_MARKS = frozenset({"edm_mean", "edm_vpred.sigma_max"})
CAN_BE = "SD 1.x, SD 2.x and SDXL can be trained, and their inpainting models. Choose another checkpoint."


def spec_of(sd_model: Any, options: ModelOptions | None = None, *, zero_terminal_snr: bool = False) -> ModelSpec:
    """What it is, where the options do not say otherwise. `zero_terminal_snr`: whether the host samples so.

    ModelError, naming its spec, if WebuiModel cannot train it; ConfigError if the options cannot be.
    """
    marks = _marks_of(sd_model) if is_sdxl(sd_model) else frozenset()
    unfit = _unfit_sdxl(sd_model, marks) if is_sdxl(sd_model) else _unfit(sd_model)
    if unfit:
        message = f"{sd_model.sd_checkpoint_info.model_name} is {unfit}. {CAN_BE}"
        raise ModelError(message)
    family = "SDXL" if is_sdxl(sd_model) else FAMILIES[_class(sd_model.cond_stage_model)]
    prediction_type = "v_prediction" if V_MARK in marks else PREDICTIONS[sd_model.parameterization]
    zero_terminal_snr |= ZERO_TERMINAL_SNR_MARK in marks
    found = ModelSpec(family, prediction_type, zero_terminal_snr, _channels(sd_model) == INPAINTING_CHANNELS)
    return (options or ModelOptions()).of(found)


def is_sdxl(sd_model: Any) -> bool:
    """Whether its text encoders stand in a conditioner, as in those of Stability's later code."""
    return getattr(sd_model, "conditioner", None) is not None


def text_stages(sd_model: Any) -> list[Any]:
    """The host's wrappers around its text encoders."""
    stages = sd_model.conditioner.embedders if is_sdxl(sd_model) else [sd_model.cond_stage_model]
    return [each for each in stages if hasattr(each, "tokenize_line")]


def size_embedders(sd_model: Any) -> list[tuple[int, Any]]:
    """What embeds sizes in an SDXL model, in its order, each with its first column in ImageConditioning.sizes."""
    found = [each for each in sd_model.conditioner.embedders if not hasattr(each, "tokenize_line")]
    return [(2 * SDXL_SIZES.index(each.input_key), each) for each in found]


def _unfit(sd_model: Any) -> str:
    """What it is, if it cannot be trained, of models in the layout of SD 1.x and 2.x."""
    if getattr(sd_model, "is_sd3", False):
        return "a Stable Diffusion 3 model"
    conditioning = sd_model.model.conditioning_key
    inpainting = conditioning == "hybrid" and _channels(sd_model) == INPAINTING_CHANNELS
    if conditioning != "crossattn" and not inpainting:
        return (
            f"a model with more than text to go by ({conditioning}, {_channels(sd_model)} channels: pix2pix, depth, unCLIP?)"
        )
    if _class(sd_model.cond_stage_model) not in FAMILIES:
        return f"a model with another text encoder than CLIP ({_class(sd_model.cond_stage_model)})"
    return _unfit_prediction(sd_model)


def _unfit_sdxl(sd_model: Any, marks: frozenset[str]) -> str:
    """The same of SDXL's kin."""
    encoders = [_class(each) for each in text_stages(sd_model)]
    if encoders == ["FrozenOpenCLIPEmbedder2"]:
        return "an SDXL refiner, which goes over what another model has begun"
    if encoders != list(SDXL_ENCODERS):
        return f"a model of SDXL's spec with other text encoders ({', '.join(encoders) or 'none'})"
    others = [each.input_key for each in sd_model.conditioner.embedders if not hasattr(each, "tokenize_line")]
    if unknown := [str(each) for each in others if each not in SDXL_SIZES]:
        return f"a model of SDXL's spec with more than text and sizes to go by ({', '.join(unknown)})"
    if _channels(sd_model) not in (4, INPAINTING_CHANNELS):
        return f"a model of SDXL's spec with {_channels(sd_model)} input channels"
    if marks & EDM_MARKS:
        return "an SDXL model with EDM's noise schedule"
    return _unfit_prediction(sd_model)


def _unfit_prediction(sd_model: Any) -> str:
    known = sd_model.parameterization in PREDICTIONS
    return "" if known else f"a model that predicts neither noise nor v ({sd_model.parameterization})"


def _channels(sd_model: Any) -> int:
    return sd_model.model.diffusion_model.in_channels


def _class(stage: Any) -> str:
    return type(getattr(stage, "wrapped", None)).__name__


def _marks_of(sd_model: Any) -> frozenset[str]:
    """What the checkpoint's file says of itself; the host can tell v prediction only from a .yaml."""
    path = Path(sd_model.sd_checkpoint_info.filename)
    try:
        found = path.stat()
        is_readable = path.suffix.lower() == ".safetensors"
        return _marks(path, (found.st_mtime_ns, found.st_size)) if is_readable else frozenset()
    except (OSError, SafetensorError):  # gone since it was loaded: then the host's word counts
        return frozenset()


@lru_cache(maxsize=16)
def _marks(path: Path, _version: tuple[int, int]) -> frozenset[str]:
    with safe_open(path, "pt") as file:
        return frozenset({V_MARK, ZERO_TERMINAL_SNR_MARK, *EDM_MARKS}) & set(file.keys())
