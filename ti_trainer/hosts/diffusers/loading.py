"""From the name of a checkpoint to a DiffusersModel, without any network."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

# Before the libraries are imported: a path that is wrong must not become a download.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from ti_trainer import embedded
from ti_trainer.errors import ModelError
from ti_trainer.hosts.diffusers import single_file
from ti_trainer.hosts.diffusers.model import DiffusersModel

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SUPPORTED_WIDTHS = (768, 64)  # of SD 1.x and of the embedded model
CHECKPOINT_ENDINGS = (".safetensors", ".ckpt")


def load(model: str, device: str = "auto", precision: str = "auto", clip_skip: int = 1) -> DiffusersModel:
    """Load `embedded`, a folder in diffusers' layout or a single-file SD 1.x checkpoint; else ModelError."""
    _be_quiet()
    place = pick_device(device)
    dtype = pick_dtype(precision, place)
    path = embedded.MODEL if model == "embedded" else Path(model).expanduser()
    if (path / "model_index.json").is_file():
        parts = _from_folder(path)
        weights = next(iter(sorted((path / "unet").glob("*.safetensors"))), path / "model_index.json")
    elif path.is_file() and path.suffix.lower() in CHECKPOINT_ENDINGS:
        parts, weights = single_file.read(path), path
    else:
        message = (
            f"There is no model at {model!r}: expected 'embedded', a folder in diffusers' layout (with model_index.json), "
            "or a checkpoint file (.safetensors, .ckpt)."
        )
        raise ModelError(message)
    unet, vae, text_encoder, tokenizer, scheduler = parts
    _refuse_unknown(unet, scheduler, path)
    return DiffusersModel(
        unet=unet.to(place, dtype, memory_format=torch.channels_last).eval(),
        vae=vae.to(place, torch.float32).eval(),
        text_encoder=text_encoder.to(place, torch.float32).eval(),  # small; half precision would round the vectors
        tokenizer=tokenizer,
        alphas_cumprod=scheduler.alphas_cumprod,
        prediction_type=scheduler.config.prediction_type,
        name="embedded" if model == "embedded" else path.stem,
        weights=weights,
        clip_skip=clip_skip,
    )


def pick_device(device: str) -> torch.device:
    """A torch device by name; auto takes CUDA, then Apple's, then the CPU."""
    if device != "auto":
        try:
            return torch.empty(0, device=device).device
        except (RuntimeError, AssertionError) as error:
            message = f"The device {device!r} cannot be used here ({str(error).splitlines()[0]}): try auto or cpu."
            raise ModelError(message) from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The numbers to compute with; ModelError for fp16 on a CPU, which cannot train in it."""
    if precision == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if precision == "fp16" and device.type != "cuda":
        message = f"Precision fp16 needs a CUDA device, and this is {device.type}: use auto, fp32 or bf16."
        raise ModelError(message)
    return DTYPES[precision]


def _from_folder(path: Path) -> single_file.Parts:
    options = {"torch_dtype": torch.float32, "local_files_only": True, "use_safetensors": True}  # never a pickle
    try:
        return (
            UNet2DConditionModel.from_pretrained(path / "unet", **options),
            AutoencoderKL.from_pretrained(path / "vae", **options),
            CLIPTextModel.from_pretrained(path / "text_encoder", **options),
            CLIPTokenizer.from_pretrained(path / "tokenizer", local_files_only=True),
            DDPMScheduler.from_pretrained(path / "scheduler", local_files_only=True),
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        message = f"The model in {path} cannot be read: {reason} Expected Stable Diffusion 1.x in diffusers' layout."
        raise ModelError(message) from error


def _refuse_unknown(unet: UNet2DConditionModel, scheduler: DDPMScheduler, path: Path) -> None:
    width = unet.config.cross_attention_dim
    if width not in SUPPORTED_WIDTHS or unet.config.in_channels != 4 or unet.config.addition_embed_type:
        message = (
            f"{path} is a model with text width {width} and {unet.config.in_channels} input channels; so far only SD 1.x "
            "(768 and 4) can be trained. SD 2.x, SDXL and inpainting models come later."
        )
        raise ModelError(message)
    if scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
        message = f"{path} predicts {scheduler.config.prediction_type}; expected epsilon or v_prediction."
        raise ModelError(message)


def _be_quiet() -> None:
    """The libraries tell of things that a user can do nothing about."""
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(diffusers|transformers)\.")
