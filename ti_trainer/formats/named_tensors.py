"""Bare tensors by name, in .safetensors or torch's pickle: what kohya's scripts, OneTrainer and diffusers write.

Such files carry no name, so the embedding has the file's, as the WebUI has it. Knows nothing of what else a file may hold.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from ti_trainer import files
from ti_trainer.embedding import Embedding
from ti_trainer.errors import EmbeddingFormatError
from ti_trainer.formats import torch_pickle
from ti_trainer.formats.checks import by_encoder, checked

KOHYA_KEY = "emb_params"
_ONETRAINER_KEY = "emp_params"  # its own spelling, and the only one that it reads
_TOOLS = {
    KOHYA_KEY: {"format": "kohya", "tool": "kohya sd-scripts"},
    _ONETRAINER_KEY: {"format": "onetrainer", "tool": "OneTrainer"},
}
_ENCODERS = ("clip_l", "clip_g")


def from_tensors(tensors: dict[str, Tensor], stem: str) -> Embedding:
    """One tensor of any name, whose width tells the text encoder, or `clip_l` with `clip_g`; else EmbeddingFormatError."""
    if any(str(key).endswith("_out") for key in tensors):
        message = (
            "it holds OneTrainer's output embeddings, which act behind the text encoder: no prompt can use them. "
            "Train it again without output embedding."
        )
        raise EmbeddingFormatError(message)
    if set(tensors) == set(_ENCODERS):
        vectors = {encoder: checked(tensors[encoder]) for encoder in _ENCODERS}
        return Embedding(stem, vectors, info={"format": "kohya", "tool": "kohya sd-scripts or OneTrainer"})
    if len(tensors) != 1:
        terms = ", ".join(sorted(str(key)[:40] for key in tensors)[:5])
        message = f"it holds {len(tensors)} terms ({terms}); expected one, or clip_l with clip_g. Choose an embedding."
        raise EmbeddingFormatError(message)
    key, tensor = next(iter(tensors.items()))
    info: dict[str, Any] = _TOOLS.get(key) or {"format": "diffusers", "tool": "diffusers", "token": str(key)}
    name = str(key).strip("<>") if "token" in info and stem.startswith("learned_embeds") else stem
    return Embedding(name, by_encoder(tensor), info=dict(info))


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
