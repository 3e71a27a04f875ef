"""Models as folders in diffusers' layout, read without any network and without a pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ti_trainer import formats
from ti_trainer.embedding import encoder_of_width
from ti_trainer.errors import ModelError
from ti_trainer.hosts.diffusers.kinds import EXPECTED
from ti_trainer.hosts.diffusers.parts import Parts, both_encoders
from ti_trainer.hosts.diffusers.text import TextEncoder

INDEX = "model_index.json"
OTHERS = ("text_encoder_3", "transformer", "prior")  # parts that only other kinds of model have
OTHER_NOISE = {"EDM": "EDM", "FlowMatch": "flow matching"}  # in the name of a scheduler -> what it is for


def read(path: Path, dtype: torch.dtype, *, only_shapes: bool = False) -> Parts:
    """The parts of a model, the U-Net as `dtype`, the others in float32; ModelError if it is damaged or of another kind.

    With `only_shapes` the weights are left out, and the parts are on no device.
    """
    index = _json(path / INDEX)
    _refuse_others(path, index)
    two = "text_encoder_2" in index
    try:
        unet = _part(UNet2DConditionModel, path / "unet", dtype, only_shapes)
        vae = _part(AutoencoderKL, path / "vae", torch.float32, only_shapes)
        scheduler = DDPMScheduler.from_pretrained(path / "scheduler", local_files_only=True)
        encoder = _part(CLIPTextModel, path / "text_encoder", torch.float32, only_shapes)
        tokenizer = CLIPTokenizer.from_pretrained(path / "tokenizer", local_files_only=True)
        if not two:
            width = encoder.get_input_embeddings().embedding_dim
            return Parts(unet, vae, [TextEncoder(encoder_of_width(width), encoder, tokenizer)], scheduler)
        second = _part(CLIPTextModelWithProjection, path / "text_encoder_2", torch.float32, only_shapes)
        tokenizer_2 = CLIPTokenizer.from_pretrained(path / "tokenizer_2", local_files_only=True)
        return Parts(unet, vae, both_encoders((encoder, tokenizer), (second, tokenizer_2)), scheduler)
    except ModelError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        message = f"The model in {path} cannot be read: {reason} Expected Stable Diffusion in diffusers' layout."
        raise ModelError(message) from error


def _part(kind: Any, folder: Path, dtype: torch.dtype, only_shapes: bool) -> Any:
    """One network. The libraries fill what is missing with random numbers and say nothing that a user would see."""
    if only_shapes:
        with torch.device("meta"):
            if issubclass(kind, CLIPTextModel | CLIPTextModelWithProjection):
                return kind(CLIPTextConfig.from_pretrained(folder))
            return kind.from_config(kind.load_config(folder))
    options = {"torch_dtype": dtype, "local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    module, found = kind.from_pretrained(folder, variant=_variant(folder), **options)
    missing = [key for key in found["missing_keys"] if not key.endswith("position_ids")]
    if missing:
        message = f"{folder.name} lacks weights ({', '.join(sorted(missing)[:3])}): it is damaged."
        raise ValueError(message)
    return module


def _variant(folder: Path) -> str | None:
    """Many folders have their weights in half precision only."""
    names = [path.name for path in folder.glob("*.safetensors*")]
    for each in folder.glob("*.safetensors"):
        formats.is_pickle(each)  # a clone without Git LFS has pointers in place of weights
    if not names:
        pickles = " Pickles (.bin) are not read, since they may run anything." if list(folder.glob("*.bin")) else ""
        message = f"{folder.name} has no .safetensors.{pickles}"
        raise ValueError(message)
    return "fp16" if all(".fp16." in name or "-fp16-" in name for name in names) else None


def _refuse_others(path: Path, index: dict[str, Any]) -> None:
    what = "an SDXL refiner" if "text_encoder_2" in index and not (path / "text_encoder").is_dir() else ""
    if any(index.get(part) for part in OTHERS) or "unet" not in index:
        what = f"a {index.get('_class_name', 'model of another kind')}"
    scheduler = _json(path / "scheduler" / "scheduler_config.json").get("_class_name", "")
    noise = next((words for name, words in OTHER_NOISE.items() if name in scheduler), None)
    if noise and not what:
        what = f"a model with noise as in {noise} ({scheduler})"
    if what:
        message = f"{path} is {what}; {EXPECTED}."
        raise ModelError(message)


def _json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        message = f"{file} cannot be read ({error}): the model is damaged or not in diffusers' layout."
        raise ModelError(message) from error
