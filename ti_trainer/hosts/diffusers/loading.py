"""From the name of a checkpoint to a DiffusersModel, without any network."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

# Before the libraries are imported: a path that is wrong must not become a download.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ti_trainer import embedded
from ti_trainer.embedding import encoder_of_width
from ti_trainer.errors import ModelError
from ti_trainer.host import ModelOptions
from ti_trainer.hosts.diffusers import single_file
from ti_trainer.hosts.diffusers.attention import Float32Attention, needs_fp32_attention
from ti_trainer.hosts.diffusers.kinds import refuse_unknown
from ti_trainer.hosts.diffusers.model import DiffusersModel
from ti_trainer.hosts.diffusers.parts import Parts, both_encoders
from ti_trainer.hosts.diffusers.text import TextEncoder

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
CHECKPOINT_ENDINGS = (".safetensors", ".ckpt")
FOREIGN = ("text_encoder_3", "transformer", "prior")  # parts that only other kinds of model have


def load(model: str, device: str = "auto", options: ModelOptions | None = None) -> DiffusersModel:
    """Load `embedded`, a folder in diffusers' layout or a single-file checkpoint; ModelError if that cannot be done."""
    options = options or ModelOptions()
    place = pick_device(device)
    dtype = pick_dtype(options.precision, place)
    parts, weights = read(model, dtype)
    unet = parts.unet.to(place, dtype, memory_format=torch.channels_last).eval()
    if dtype == torch.float16 and needs_fp32_attention(unet):
        unet.set_attn_processor(Float32Attention())
    for each in parts.text_encoders:
        each.module.to(place, torch.float32).eval()  # half precision would round the vectors
    return DiffusersModel(
        unet=unet,
        vae=parts.vae.to(place, torch.float32).eval(),  # SDXL's own gives no numbers in half precision
        text_encoders=parts.text_encoders,
        scheduler=parts.scheduler,
        name="embedded" if model == "embedded" else Path(model).stem,
        weights=weights,
        options=options,
    )


def read(model: str, dtype: torch.dtype) -> tuple[Parts, Path]:
    """The parts of a model that can be trained, and the file whose hash is its own; ModelError if there is none.

    A folder's U-Net is read as `dtype`, that of a file as it is there.
    """
    _be_quiet()
    path = embedded.MODEL if model == "embedded" else Path(model).expanduser()
    if (path / "model_index.json").is_file():
        parts = _from_folder(path, dtype)
        weights = next(iter(sorted((path / "unet").glob("*.safetensors"))), path / "model_index.json")
    elif path.is_file() and path.suffix.lower() in CHECKPOINT_ENDINGS:
        parts, weights = single_file.read(path), path
    else:
        message = (
            f"There is no model at {model!r}: expected 'embedded', a folder in diffusers' layout (with model_index.json), "
            "or a checkpoint file (.safetensors, .ckpt)."
        )
        raise ModelError(message)
    refuse_unknown(parts.unet, parts.text_encoders, parts.scheduler, str(path))
    return parts, weights


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


def _from_folder(path: Path, dtype: torch.dtype) -> Parts:
    options = {"torch_dtype": torch.float32, "local_files_only": True, "use_safetensors": True}  # never a pickle
    _refuse_foreign(path)
    try:
        scheduler_file = json.loads((path / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
        if "EDM" in scheduler_file.get("_class_name", ""):
            message = f"The model in {path} has noise as in EDM ({scheduler_file['_class_name']}); expected as in DDPM."
            raise ModelError(message)
        unet = UNet2DConditionModel.from_pretrained(path / "unet", **{**options, "torch_dtype": dtype})
        vae = AutoencoderKL.from_pretrained(path / "vae", **options)
        scheduler = DDPMScheduler.from_pretrained(path / "scheduler", local_files_only=True)
        tokenizer = CLIPTokenizer.from_pretrained(path / "tokenizer", local_files_only=True)
        encoder = CLIPTextModel.from_pretrained(path / "text_encoder", **options)
        if not (path / "text_encoder_2").is_dir():
            width = encoder.get_input_embeddings().embedding_dim
            return Parts(unet, vae, [TextEncoder(encoder_of_width(width), encoder, tokenizer)], scheduler)
        second = CLIPTextModelWithProjection.from_pretrained(path / "text_encoder_2", **options)
        tokenizer_2 = CLIPTokenizer.from_pretrained(path / "tokenizer_2", local_files_only=True)
        return Parts(unet, vae, both_encoders((encoder, tokenizer), (second, tokenizer_2)), scheduler)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        message = f"The model in {path} cannot be read: {reason} Expected Stable Diffusion in diffusers' layout."
        raise ModelError(message) from error


def _refuse_foreign(path: Path) -> None:
    index = json.loads((path / "model_index.json").read_text(encoding="utf-8"))
    what = "an SDXL refiner" if "text_encoder_2" in index and not (path / "text_encoder").is_dir() else ""
    if any(index.get(part) for part in FOREIGN) or "unet" not in index:
        what = f"a {index.get('_class_name', 'model of another kind')}"
    if what:
        message = f"{path} is {what}; expected Stable Diffusion 1.x, 2.x or SDXL, or one of their inpainting models."
        raise ModelError(message)


def _be_quiet() -> None:
    """The libraries tell of things that a user can do nothing about."""
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(diffusers|transformers)\.")
