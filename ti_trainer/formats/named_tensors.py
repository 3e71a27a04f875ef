"""Bare tensors by name, in .safetensors or torch's pickle: what kohya's scripts, OneTrainer and diffusers write.

Such files carry no name, so the embedding has the file's, as the WebUI has it. Knows nothing of what else a file may hold.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from ti_trainer import files
from ti_trainer.embedding import Embedding
from ti_trainer.errors import EmbeddingFormatError
from ti_trainer.formats import torch_pickle
from ti_trainer.formats.checks import T5_WIDTH, by_encoder, checked, refuse_t5
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

Shapes = Mapping[Any, Sequence[int]]


def from_tensors(tensors: dict[Any, Tensor], stem: str) -> Embedding:
    """One tensor of any name, whose width tells the text encoder, or `clip_l` with `clip_g`; else EmbeddingFormatError."""
    refuse_others({key: tuple(tensor.shape) if isinstance(tensor, Tensor) else () for key, tensor in tensors.items()})
    tool = "diffusers or cog-sdxl" if set(tensors) <= set(_ALIASES) else "kohya sd-scripts or OneTrainer"
    tensors = _with_encoders(tensors)
    if set(tensors) == set(_ENCODERS):
        vectors = {encoder: checked(tensors[encoder]) for encoder in _ENCODERS}
        info = {"format": "kohya", "tool": tool}
        if {encoder: each.shape[1] for encoder, each in vectors.items()} == {"clip_l": 1280, "clip_g": 768}:
            vectors = {"clip_l": vectors["clip_g"], "clip_g": vectors["clip_l"]}
            info["repaired"] = "its clip_l and clip_g were exchanged, as their widths tell, and were put right"
        return Embedding(stem, vectors, info=info)
    key, tensor = next(iter(tensors.items()))
    if key in _ENCODERS:
        return Embedding(stem, by_encoder(tensor), info={"format": "kohya", "tool": tool})
    info = _TOOLS.get(key) or {"format": "diffusers", "tool": "diffusers", "token": str(key)}
    name = str(key).strip("<>") if "token" in info and stem.startswith("learned_embeds") else stem
    return Embedding(name, by_encoder(tensor), info=dict(info))


def refuse_others(shapes: Shapes) -> None:
    """EmbeddingFormatError for tensors of these names and shapes that are no embedding, or none that can be used."""
    what = spec_of(shapes)
    if what:
        message = f"it is {what}. Choose an embedding."
        raise EmbeddingFormatError(message)
    if any(str(key).endswith("_out") for key in shapes):
        message = (
            "it holds OneTrainer's output embeddings, which act behind the text encoder: no prompt can use them. "
            "Train it again without output embedding."
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


def _with_encoders(tensors: Mapping[Any, Any]) -> dict[Any, Any]:
    """The tensors, with our names of the text encoders in place of other tools'."""
    if not set(tensors) <= set(_ALIASES):
        return dict(tensors)
    return {_ALIASES[key]: tensor for key, tensor in tensors.items()}


def _refuse_wrong_widths(shapes: Shapes) -> None:
    """A text encoder's vectors with the width of SDXL's other one; both of them exchanged can be put right."""
    widths = {encoder: shapes[encoder][-1] for encoder in _ENCODERS if shapes.get(encoder)}
    wrong = [encoder for encoder, width in widths.items() if width != _WIDTHS[encoder] and width in _WIDTHS.values()]
    if len(wrong) == 1:
        found = ", ".join(f"{encoder} of width {width}" for encoder, width in widths.items())
        message = f"it holds {found}; SDXL's clip_l has width 768 and its clip_g 1280. No program can use it: get it anew."
        raise EmbeddingFormatError(message)


def to_tensors(embedding: Embedding, key: str) -> dict[str, Tensor]:
    """A lone text encoder's vectors under `key`, SDXL's under `clip_l` and `clip_g`."""
    if len(embedding.vectors) == 1:
        return {key: next(iter(embedding.vectors.values()))}
    return embedding.vectors


def save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write .safetensors, or torch's pickle (without metadata) for any other ending; the same bytes for the same tensors."""
    if path.suffix.lower() != ".safetensors":
        torch_pickle.dump(tensors, path)
        return
    saved = safetensors.torch.save(tensors, metadata)
    size = int.from_bytes(saved[:8], "little")
    header = json.dumps(json.loads(saved[8 : 8 + size]), sort_keys=True).encode()  # it comes in random order
    header += b" " * (-len(header) % 8)
    files.write_bytes(path, len(header).to_bytes(8, "little") + header + saved[8 + size :])


def write_kohya(embedding: Embedding, path: Path) -> None:
    """As kohya's train_textual_inversion.py, in float32."""
    save(to_tensors(embedding, KOHYA_KEY), path)


def write_onetrainer(embedding: Embedding, path: Path) -> None:
    """As OneTrainer's embedding savers, in float32."""
    save(to_tensors(embedding, _ONETRAINER_KEY), path)
