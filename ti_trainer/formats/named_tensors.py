"""Tensors by name, in .safetensors or a pickle: what kohya's scripts, OneTrainer and diffusers write.

Such files do not store the embedding's name: it is the file's, as in the WebUI.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.numpy

from ti_trainer import files
from ti_trainer.embedding import Embedding
from ti_trainer.errors import EmbeddingFormatError
from ti_trainer.formats.checks import T5_WIDTH, Vectors, by_encoder, checked, refuse_t5
from ti_trainer.formats.precision import encoded
from ti_trainer.formats.tensor_names import spec_of

KOHYA_KEY = "emb_params"
_ONETRAINER_KEY = "emp_params"  # its own spelling, and the only one that it reads
_TOOLS = {
    KOHYA_KEY: {"format": "kohya", "tool": "kohya sd-scripts"},
    _ONETRAINER_KEY: {"format": "onetrainer", "tool": "OneTrainer"},
}
_ENCODERS = ("clip_l", "clip_g")
_ALIASES = {"text_encoders_0": "clip_l", "text_encoders_1": "clip_g"}  # diffusers' advanced scripts of 2023, cog-sdxl
_T5 = {"t5", "t5xxl", "t5_xxl", "t5-xxl", "umt5", "text_encoders_2"}
_WIDTHS = {"clip_l": 768, "clip_g": 1280}  # of SDXL
COMFYUI_T5_KEY = "t5xxl"

Shapes = Mapping[Any, Sequence[int]]


def from_tensors(tensors: Mapping[Any, object], stem: str, *, t5: bool = False) -> Embedding:
    """The embedding in arrays or tensors: a single one with any name, or `clip_l` and `clip_g`; else EmbeddingFormatError.

    The width of a single one determines its text encoder. `t5`: also embeddings with vectors for T5.
    """
    shapes = {key: tuple(getattr(each, "shape", ())) for key, each in tensors.items()}
    if t5 and has_t5(shapes):
        vectors = {"t5" if str(key).lower() in _T5 else str(key): checked(each) for key, each in tensors.items()}
        info = {"format": "onetrainer", "tool": "OneTrainer, ComfyUI or another"}
        if "clip_l" not in vectors and "clip_g" in vectors and vectors["clip_g"].shape[1] == _WIDTHS["clip_l"]:
            vectors["clip_l"] = vectors.pop("clip_g")  # OneTrainer's issue 514
            info["repaired"] = "its clip_g was called clip_l, as its width shows; OneTrainer wrote it so for Flux in 2024"
        in_order = {encoder: vectors[encoder] for encoder in (*_ENCODERS, "t5") if encoder in vectors}
        return Embedding(stem, in_order, info=info)
    refuse_others(shapes)
    tool = "diffusers or cog-sdxl" if set(tensors) <= set(_ALIASES) else "kohya sd-scripts or OneTrainer"
    tensors = _with_encoders(tensors)
    if set(tensors) == set(_ENCODERS):
        vectors = {encoder: checked(tensors[encoder]) for encoder in _ENCODERS}
        info = {"format": "kohya", "tool": tool}
        if {encoder: each.shape[1] for encoder, each in vectors.items()} == {"clip_l": 1280, "clip_g": 768}:
            vectors = {"clip_l": vectors["clip_g"], "clip_g": vectors["clip_l"]}
            info["repaired"] = "its clip_l and clip_g were swapped, as their widths show, and were swapped back"
        return Embedding(stem, vectors, info=info)
    key, tensor = next(iter(tensors.items()))
    if key in _ENCODERS:
        return Embedding(stem, by_encoder(tensor), info={"format": "kohya", "tool": tool})
    info = _TOOLS.get(key) or {"format": "diffusers", "tool": "diffusers", "token": str(key)}
    name = str(key).strip("<>") if "token" in info and stem.startswith("learned_embeds") else stem
    return Embedding(name, by_encoder(tensor), info=dict(info))


def refuse_others(shapes: Shapes) -> None:
    """EmbeddingFormatError if tensors with these names and shapes are not an embedding, or not a supported one."""
    what = spec_of(shapes)
    if what:
        message = f"it is {what}. Choose an embedding."
        raise EmbeddingFormatError(message)
    if any(str(key).endswith("_out") for key in shapes):
        message = (
            "it holds OneTrainer's output embeddings, which are applied after the text encoder: prompts cannot use them. "
            "Train it again without output embeddings."
        )
        raise EmbeddingFormatError(message)
    wide = any(shape and shape[-1] == T5_WIDTH for shape in shapes.values())
    if _T5 & {str(key).lower() for key in shapes} or (wide and len(shapes) <= len(_T5)):
        refuse_t5()
    names = set(_with_encoders(shapes))
    if len(shapes) != 1 and names != set(_ENCODERS):
        terms = ", ".join(sorted(str(key)[:40] for key in shapes)[:5])
        message = f"it holds {len(shapes)} terms ({terms}); expected one, or clip_l with clip_g. Choose an embedding."
        raise EmbeddingFormatError(message)
    _refuse_wrong_widths(_with_encoders(shapes))


def has_t5(shapes: Shapes) -> bool:
    """Whether these are vectors for T5, alone or with those for the CLIP text encoders of Flux or SD 3."""
    of_t5 = [key for key in shapes if str(key).lower() in _T5]
    if len(of_t5) != 1 or len(shapes[of_t5[0]]) == 0:
        return False
    return shapes[of_t5[0]][-1] == T5_WIDTH and set(shapes) - set(of_t5) <= set(_ENCODERS)


def _with_encoders(tensors: Mapping[Any, Any]) -> dict[Any, Any]:
    """The tensors by our names of the text encoders instead of other tools' names."""
    if not set(tensors) <= set(_ALIASES):
        return dict(tensors)
    return {_ALIASES[key]: tensor for key, tensor in tensors.items()}


def _refuse_wrong_widths(shapes: Shapes) -> None:
    """Refuse one text encoder's vectors under the other one's name; if both are swapped, they can be swapped back."""
    widths = {encoder: shapes[encoder][-1] for encoder in _ENCODERS if shapes.get(encoder)}
    wrong = [encoder for encoder, width in widths.items() if width != _WIDTHS[encoder] and width in _WIDTHS.values()]
    if len(wrong) == 1:
        found = ", ".join(f"{encoder} of width {width}" for encoder, width in widths.items())
        message = f"it holds {found}; SDXL's clip_l has width 768 and its clip_g 1280. Download it again."
        raise EmbeddingFormatError(message)


def to_arrays(embedding: Embedding, key: str, t5_key: str = "t5") -> dict[str, Vectors]:
    """A single text encoder's vectors under `key`, SDXL's under `clip_l` and `clip_g`, those for T5 under `t5_key`."""
    arrays = embedding.arrays
    if len(arrays) == 1 and "t5" not in arrays:
        return {key: next(iter(arrays.values()))}
    return {t5_key if encoder == "t5" else encoder: each for encoder, each in arrays.items()}


def save(arrays: dict[str, Vectors], path: Path, metadata: dict[str, str] | None = None, dtype: str = "fp32") -> None:
    """Write .safetensors, or a pickle (without metadata) for any other extension; the same bytes for the same arrays."""
    if path.suffix.lower() != ".safetensors":
        import torch

        from ti_trainer.formats import torch_pickle

        in_torch = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
        torch_pickle.dump({name: torch.from_numpy(each).to(in_torch) for name, each in arrays.items()}, path)
        return
    saved = safetensors.numpy.save({name: encoded(each, dtype) for name, each in arrays.items()}, metadata)
    size = int.from_bytes(saved[:8], "little")
    described = json.loads(saved[8 : 8 + size])
    for name in arrays if dtype == "bf16" else ():
        described[name]["dtype"] = "BF16"
    header = json.dumps(described, sort_keys=True).encode()  # its order is random
    header += b" " * (-len(header) % 8)
    files.write_bytes(path, len(header).to_bytes(8, "little") + header + saved[8 + size :])


def write_kohya(embedding: Embedding, path: Path, dtype: str = "fp32") -> None:
    """As kohya's train_textual_inversion.py."""
    save(to_arrays(embedding, KOHYA_KEY), path, dtype=dtype)


def write_onetrainer(embedding: Embedding, path: Path, dtype: str = "fp32") -> None:
    """As OneTrainer's embedding savers."""
    save(to_arrays(embedding, _ONETRAINER_KEY), path, dtype=dtype)
