"""Reads models from folders in diffusers' layout, without downloads and without pickles."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from ti_trainer import formats
from ti_trainer.embedding import encoder_of_width
from ti_trainer.errors import ModelError
from ti_trainer.formats import network_config
from ti_trainer.hosts.diffusers.components import Components, both_encoders
from ti_trainer.hosts.diffusers.defaults import INDEX
from ti_trainer.hosts.diffusers.library import (
    AutoencoderKL,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    DDPMScheduler,
    UNet2DConditionModel,
)
from ti_trainer.hosts.diffusers.model_spec import EXPECTED
from ti_trainer.hosts.diffusers.text import TextEncoder
from ti_trainer.offload.patching import patched

SCHEDULER, TOKENIZER = "scheduler_config.json", "tokenizer_config.json"
MOST_TIMESTEPS = 100_000
PLAIN = re.compile(r"[a-z]{2,}</w>")  # a token that is a whole word
PROBES = 16  # the tokenizer must find one of the last of those: then its merges are complete
PADDING = 256  # rows that a text encoder may have beyond the vocabulary
OTHERS = ("text_encoder_3", "transformer", "prior")  # components that only other kinds of model have
OTHER_NOISE = {"EDM": "EDM", "FlowMatch": "flow matching"}  # in the name of a scheduler -> its kind of noise


def read(path: Path, dtype: torch.dtype, *, only_shapes: bool = False) -> Components:
    """A model's components, the U-Net in `dtype`, the others in float32; ModelError if it is damaged or of another kind.

    With `only_shapes` no weights are read, and the components are on the meta device.
    """
    index = _json(path / INDEX)
    _refuse_others(path, index)
    try:
        with network_config.offline():
            return _read(path, dtype, only_shapes, two="text_encoder_2" in index)
    except ModelError:
        raise
    except Exception as error:  # the libraries do not document what a damaged or malicious file raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        message = (
            f"The model in {path} cannot be read: {reason.rstrip('.')}. Expected Stable Diffusion in diffusers' layout."
        )
        raise ModelError(message) from error


def _read(path: Path, dtype: torch.dtype, only_shapes: bool, *, two: bool) -> Components:
    unet = _part(UNet2DConditionModel, path / "unet", dtype, only_shapes)
    vae = _part(AutoencoderKL, path / "vae", torch.float32, only_shapes)
    scheduler = _scheduler(path / "scheduler")
    encoder = _part(CLIPTextModel, path / "text_encoder", torch.float32, only_shapes)
    tokenizer = _tokenizer(path / "tokenizer", encoder)
    if not two:
        width = encoder.get_input_embeddings().embedding_dim
        return Components(unet, vae, [TextEncoder(encoder_of_width(width), encoder, tokenizer)], scheduler)
    second = _part(CLIPTextModelWithProjection, path / "text_encoder_2", torch.float32, only_shapes)
    tokenizer_2 = _tokenizer(path / "tokenizer_2", second)
    return Components(unet, vae, both_encoders((encoder, tokenizer), (second, tokenizer_2)), scheduler)


def _scheduler(folder: Path) -> DDPMScheduler:
    steps = network_config.read(folder / SCHEDULER).get("num_train_timesteps", 1000)
    if not (type(steps) is int and 1 <= steps <= MOST_TIMESTEPS):
        message = f"{SCHEDULER} has num_train_timesteps {steps!r:.50}, expected 1 to {MOST_TIMESTEPS}."
        raise ValueError(message)
    return DDPMScheduler.from_pretrained(folder, local_files_only=True)


def _tokenizer(folder: Path, encoder: Any) -> CLIPTokenizer:
    """Check the tokenizer: the library accepts missing files, and then knows two tokens or no merges."""
    if (folder / TOKENIZER).exists():
        network_config.read(folder / TOKENIZER)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        message = f"{folder.name}: the tokenizer is damaged or missing files ({error})."
        raise ValueError(message) from error
    rows = encoder.get_input_embeddings().num_embeddings
    vocabulary = tokenizer.get_vocab()
    last = sorted((token for token in vocabulary if PLAIN.fullmatch(token)), key=vocabulary.__getitem__)[-PROBES:]
    whole = any(tokenizer(each[: -len("</w>")], add_special_tokens=False).input_ids == [vocabulary[each]] for each in last)
    if not whole or not rows - PADDING <= len(tokenizer) <= rows:
        found = f"it has {len(tokenizer):,} tokens, the text encoder {rows:,}" if whole else "it finds no whole words"
        message = f"{folder.name}: the tokenizer is damaged or missing files ({found})."
        raise ValueError(message)
    return tokenizer


def _part(kind: Any, folder: Path, dtype: torch.dtype, only_shapes: bool) -> Any:
    """One network; ValueError if weights are missing, which the libraries would fill with random numbers."""
    network_config.read(folder / "config.json")
    if only_shapes:
        with torch.device("meta"):
            if issubclass(kind, CLIPTextModel | CLIPTextModelWithProjection):
                return kind(CLIPTextConfig.from_pretrained(folder, local_files_only=True))
            return kind.from_config(kind.load_config(folder, local_files_only=True))
    options = {"torch_dtype": dtype, "local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    # transformers initialises embeddings on the meta device, where `normal_` imports torch's compiler.
    with patched([(torch.nn.init, "normal_", lambda weight, *_, **__: weight)]):
        module, found = kind.from_pretrained(folder, variant=_variant(folder), **options)
    missing = [key for key in found["missing_keys"] if not key.endswith("position_ids")]
    if missing:
        message = f"{folder.name} lacks weights ({', '.join(sorted(missing)[:3])}): it is damaged."
        raise ValueError(message)
    return module


def _variant(folder: Path) -> str | None:
    """The variant to read: fp16 if all weight files are. ValueError without .safetensors files."""
    names = [path.name for path in folder.glob("*.safetensors*")]
    for each in folder.glob("*.safetensors"):
        formats.is_pickle(each)  # a clone without Git LFS has pointers in place of weights
    if not names:
        pickles = " Pickles (.bin) are not read, since they can run code." if list(folder.glob("*.bin")) else ""
        message = f"{folder.name} has no .safetensors.{pickles}"
        raise ValueError(message)
    return "fp16" if all(".fp16." in name or "-fp16-" in name for name in names) else None


def _refuse_others(path: Path, index: dict[str, Any]) -> None:
    what = "an SDXL refiner" if "text_encoder_2" in index and not (path / "text_encoder").is_dir() else ""
    if any(index.get(part) for part in OTHERS) or "unet" not in index:
        what = f"a {index.get('_class_name', 'model of another kind')}"
    scheduler = str(_json(path / "scheduler" / SCHEDULER).get("_class_name", ""))
    noise = next((words for name, words in OTHER_NOISE.items() if name in scheduler), None)
    if noise and not what:
        what = f"a model with noise as in {noise} ({scheduler})"
    if what:
        message = f"{path} is {what}; {EXPECTED}."
        raise ModelError(message)


def _json(file: Path) -> dict[str, Any]:
    try:
        return network_config.read(file)
    except (OSError, ValueError) as error:
        message = f"{file} cannot be read ({error}): the model is damaged or not in diffusers' layout."
        raise ModelError(message) from error
