"""Loads a DiffusersModel from a name or path, without downloads."""

from __future__ import annotations

import os
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

from ti_trainer import formats, tiny_model
from ti_trainer.errors import EmbeddingFormatError, ModelError
from ti_trainer.host import ModelOptions
from ti_trainer.hosts.diffusers import folder, single_file
from ti_trainer.hosts.diffusers.attention import Float32Attention, needs_fp32_attention
from ti_trainer.hosts.diffusers.components import Components
from ti_trainer.hosts.diffusers.convolution import prefer_products
from ti_trainer.hosts.diffusers.defaults import INDEX, no_model
from ti_trainer.hosts.diffusers.library import diffusers, transformers
from ti_trainer.hosts.diffusers.model import DiffusersModel
from ti_trainer.hosts.diffusers.model_spec import refuse_unknown, spec_of
from ti_trainer.hosts.diffusers.vae import dtype_on
from ti_trainer.model import ModelSpec

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
CHECKPOINT_ENDINGS = (".safetensors", ".ckpt")


def load(model: str, device: str = "auto", options: ModelOptions | None = None) -> DiffusersModel:
    """Load `embedded`, a folder in diffusers' layout or a single-file checkpoint; ModelError if that cannot be done."""
    options = options or ModelOptions()
    place = pick_device(device)
    dtype = pick_dtype(options.precision, place)
    _use_threads(model, place)
    parts, weights = read(model, dtype)
    name = "embedded" if model == "embedded" else Path(model).stem
    return assembled(parts, place, dtype, name, weights, options)


def _use_threads(model: str, place: torch.device) -> None:
    """One thread for the embedded model on a CPU, whose operations are too small to share; OMP_NUM_THREADS overrides it."""
    default = _default_threads()  # before the first change
    if place.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1 if model == "embedded" else default)


@cache
def _default_threads() -> int:
    return torch.get_num_threads()


def assembled(
    parts: Components, place: torch.device, dtype: torch.dtype, name: str, weights: Path, options: ModelOptions
) -> DiffusersModel:
    """The model made of these components, in its dtypes. It stays in RAM until it is known what a GPU has room for."""
    place = torch.empty(0, device=place).device  # with its number
    unet = parts.unet.to(dtype=dtype, memory_format=torch.channels_last).eval()
    if place.type == "cpu":
        prefer_products(unet)
    if dtype == torch.float16 and needs_fp32_attention(unet):
        unet.set_attn_processor(Float32Attention())
    for each in parts.text_encoders:
        each.compute_in(dtype if place.type == "cuda" else torch.float32)
        each.module.eval()
    return DiffusersModel(
        unet=unet,
        vae=parts.vae.to(dtype_on(place, dtype, parts.vae, is_sdxl=len(parts.text_encoders) > 1)).eval(),
        text_encoders=parts.text_encoders,
        scheduler=parts.scheduler,
        name=name,
        weights=weights,
        options=options,
        device=place,
    )


def look(model: str) -> tuple[ModelSpec, Components]:
    """A model's spec, and its components, without weights unless they are needed for it; ModelError if there is none."""
    parts, _ = read(model, torch.float16, only_shapes=True)
    return spec_of(parts.unet, parts.text_encoders, parts.scheduler, ModelOptions()), parts


def read(model: str, dtype: torch.dtype, *, only_shapes: bool = False) -> tuple[Components, Path]:
    """A trainable model's components, and the file whose hash identifies it; ModelError if there is none.

    A folder's U-Net is read in `dtype`, that of a file in the file's dtype.
    """
    be_quiet()
    try:
        path = tiny_model.MODEL if model == "embedded" else Path(model).expanduser()
        path.stat()
    except FileNotFoundError:
        pass
    except (OSError, RuntimeError, ValueError) as error:  # the name is too long, the folder not readable, ...
        message = f"There is no model at {model[:200]!r}: {getattr(error, 'strerror', None) or error}."
        raise ModelError(message) from error
    if (path / INDEX).is_file():
        parts = folder.read(path, dtype, only_shapes=only_shapes)
        weights = next(iter(sorted((path / "unet").glob("*.safetensors"))), path / INDEX)
    elif path.is_file() and path.suffix.lower() in CHECKPOINT_ENDINGS:
        parts, weights = single_file.read(path, only_shapes=only_shapes), path
    else:
        raise ModelError(_no_model(model, path))
    refuse_unknown(parts.unet, parts.text_encoders, parts.scheduler, str(path))
    return parts, weights


def _no_model(model: str, path: Path) -> str:
    """The error message for a path without a model."""
    found = ""
    if path.is_dir():
        lora = (path / "adapter_config.json").is_file()
        found = "it is the folder of a LoRA, " if lora else "it is a folder of something else, "
    elif path.is_file():
        found = f"it is {_what_is(path)}, "
    return no_model(model, found)


def _what_is(path: Path) -> str:
    """The kind of a file that has not a checkpoint's ending; ModelError if it is damaged or, for example, a web page."""
    formats.is_pickle(path)
    with suppress(EmbeddingFormatError, OSError):
        return f"an embedding for {formats.read(path).family}"
    what = single_file.what_is(path)
    return f"{what or 'a file'} with another ending than a checkpoint's" if what in (None, "a checkpoint") else what


def pick_device(device: str) -> torch.device:
    """A torch device by name; auto: CUDA, otherwise MPS, otherwise the CPU."""
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
    """The U-Net's dtype; ModelError for fp16 without CUDA."""
    if precision == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if precision == "fp16" and device.type != "cuda":
        message = f"Precision fp16 needs a CUDA device, and this is {device.type}: use auto, fp32 or bf16."
        raise ModelError(message)
    return DTYPES[precision]


def be_quiet() -> None:
    """Silence the libraries: users can do nothing about what they log."""
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(diffusers|transformers)\.")
