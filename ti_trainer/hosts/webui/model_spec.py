"""The spec of the WebUI's loaded checkpoint: its family, prediction type and noise schedule."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ti_trainer.errors import ModelError
from ti_trainer.host import ModelOptions
from ti_trainer.model import INPAINTING_CHANNELS, ModelSpec, PredictionType

PREDICTIONS: dict[str, PredictionType] = {"eps": "epsilon", "v": "v_prediction"}  # the WebUI's names
FAMILIES = {"FrozenCLIPEmbedder": "SD 1.x", "FrozenOpenCLIPEmbedder": "SD 2.x"}  # by the class of the text encoder
SDXL_ENCODERS = {"FrozenCLIPEmbedder": "clip_l", "FrozenOpenCLIPEmbedder2": "clip_g"}
SDXL_SIZES = ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")  # as in ImageConditioning.sizes
V_MARK, ZERO_TERMINAL_SNR_MARK = "v_pred", "ztsnr"  # empty tensors that mark SDXL files; the WebUI ignores them
EDM_MARKS = frozenset({"edm_mean", "edm_vpred.sigma_max"})
TRAINABLE = "SD 1.x, SD 2.x and SDXL can be trained, and their inpainting models. Choose another checkpoint."


def spec_of(sd_model: Any, options: ModelOptions | None = None, *, zero_terminal_snr: bool = False) -> ModelSpec:
    """The checkpoint's spec with the user's choices. `zero_terminal_snr`: whether the WebUI is set to sample so.

    ModelError that names its kind, if it cannot be trained; ConfigError for options that contradict each other.
    """
    marks = _marks_of(sd_model) if is_sdxl(sd_model) else frozenset()
    unfit = _unfit_sdxl(sd_model, marks) if is_sdxl(sd_model) else _unfit(sd_model)
    if unfit:
        message = f"{sd_model.sd_checkpoint_info.model_name} is {unfit}. {TRAINABLE}"
        raise ModelError(message)
    family = "SDXL" if is_sdxl(sd_model) else FAMILIES[_class(sd_model.cond_stage_model)]
    prediction_type = "v_prediction" if V_MARK in marks else PREDICTIONS[sd_model.parameterization]
    zero_terminal_snr |= ZERO_TERMINAL_SNR_MARK in marks
    found = ModelSpec(family, prediction_type, zero_terminal_snr, _channels(sd_model) == INPAINTING_CHANNELS)
    return (options or ModelOptions()).of(found)


def is_sdxl(sd_model: Any) -> bool:
    """Whether the model is of sgm, Stability's later code, where text encoders are in a conditioner."""
    return getattr(sd_model, "conditioner", None) is not None


def text_stages(sd_model: Any) -> list[Any]:
    """The WebUI's wrappers around the text encoders."""
    stages = sd_model.conditioner.embedders if is_sdxl(sd_model) else [sd_model.cond_stage_model]
    return [each for each in stages if hasattr(each, "tokenize_line")]


def size_embedders(sd_model: Any) -> list[tuple[int, Any]]:
    """SDXL's embedders of sizes, in its order, each with its first column in ImageConditioning.sizes."""
    found = [each for each in sd_model.conditioner.embedders if not hasattr(each, "tokenize_line")]
    return [(2 * SDXL_SIZES.index(each.input_key), each) for each in found]


def _unfit(sd_model: Any) -> str:
    """The kind of an ldm model that cannot be trained, or an empty string."""
    if getattr(sd_model, "is_sd3", False):
        return "a Stable Diffusion 3 model"
    conditioning = sd_model.model.conditioning_key
    inpainting = conditioning == "hybrid" and _channels(sd_model) == INPAINTING_CHANNELS
    if conditioning != "crossattn" and not inpainting:
        found = f"{conditioning}, {_channels(sd_model)} channels"
        return f"a model conditioned on more than text ({found}: pix2pix, depth, unCLIP?)"
    if _class(sd_model.cond_stage_model) not in FAMILIES:
        return f"a model with another text encoder than CLIP ({_class(sd_model.cond_stage_model)})"
    return _unfit_prediction(sd_model)


def _unfit_sdxl(sd_model: Any, marks: frozenset[str]) -> str:
    """The same for an sgm model."""
    encoders = [_class(each) for each in text_stages(sd_model)]
    if encoders == ["FrozenOpenCLIPEmbedder2"]:
        return "an SDXL refiner, which only finishes images of another model"
    if encoders != list(SDXL_ENCODERS):
        return f"a model like SDXL with other text encoders ({', '.join(encoders) or 'none'})"
    others = [each.input_key for each in sd_model.conditioner.embedders if not hasattr(each, "tokenize_line")]
    if unknown := [str(each) for each in others if each not in SDXL_SIZES]:
        return f"a model like SDXL conditioned on more than text and sizes ({', '.join(unknown)})"
    if _channels(sd_model) not in (4, INPAINTING_CHANNELS):
        return f"a model like SDXL with {_channels(sd_model)} input channels"
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
    """The marks in the checkpoint's file; the WebUI itself knows v prediction only from a .yaml."""
    path = Path(sd_model.sd_checkpoint_info.filename)
    try:
        found = path.stat()
        is_readable = path.suffix.lower() == ".safetensors"
        return _marks(path, (found.st_mtime_ns, found.st_size)) if is_readable else frozenset()
    except (OSError, SafetensorError):  # deleted since it was loaded: the WebUI's values count
        return frozenset()


@lru_cache(maxsize=16)
def _marks(path: Path, _version: tuple[int, int]) -> frozenset[str]:
    with safe_open(path, "pt") as file:
        return frozenset({V_MARK, ZERO_TERMINAL_SNR_MARK, *EDM_MARKS}) & set(file.keys())
