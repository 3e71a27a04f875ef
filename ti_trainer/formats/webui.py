"""The WebUI's dict, in a .pt, .bin or card, and rinongal's, which it is derived from.

Source: AUTOMATIC1111 v1.10.1, modules/textual_inversion/textual_inversion.py.

V vectors, D width of a text encoder's token embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ti_trainer.embedding import Embedding
from ti_trainer.errors import EmbeddingFormatError
from ti_trainer.formats.checks import by_encoder

_TOKEN_ID = 265  # of "*", the placeholder; no program reads it
_SHORT_HASH = 10  # characters of the checkpoint's SHA-256


def from_dict(data: dict[str, Any], stem: str) -> Embedding:
    """The embedding in the WebUI's or rinongal's dict; EmbeddingFormatError if there are several."""
    terms = data["string_to_param"]
    terms = terms.get("_parameters", terms)  # torch.nn.ParameterDict
    if len(terms) != 1:
        names = ", ".join(str(term)[:40] for term in list(terms)[:5])
        message = f"it holds {len(terms)} terms ({names}); expected one. Choose a file with one embedding."
        raise EmbeddingFormatError(message)
    tool = "AUTOMATIC1111 WebUI" if "name" in data else "rinongal/textual_inversion"
    info = {"format": "webui" if "name" in data else "rinongal", "tool": tool}
    return Embedding(vectors=by_encoder(next(iter(terms.values()))), info=info, **provenance(data, stem))


def provenance(data: dict[str, Any], stem: str) -> dict[str, Any]:
    """Name (by default the file's), step and checkpoint from the WebUI's keys, as arguments of Embedding."""
    name, step = data.get("name"), data.get("step")
    checkpoint, checkpoint_hash = data.get("sd_checkpoint_name"), data.get("sd_checkpoint")
    return {
        "name": name if isinstance(name, str) and name not in ("", "*") else stem,
        "step": step if isinstance(step, int) else 0,
        "checkpoint": checkpoint if isinstance(checkpoint, str) else None,
        "checkpoint_hash": checkpoint_hash if isinstance(checkpoint_hash, str) else None,
    }


def to_dict(embedding: Embedding, vectors: Mapping[str, object]) -> dict[str, Any]:
    """The WebUI's dict with these (V, D) vectors by text encoder; EmbeddingFormatError for SDXL, which does not fit."""
    if len(vectors) != 1:
        message = (
            f"The embedding {embedding.name!r} is for {embedding.family}; the WebUI's .pt holds one text encoder's vectors. "
            "Write it as .safetensors, which the WebUI reads too."
        )
        raise EmbeddingFormatError(message)
    return {
        "string_to_token": {"*": _TOKEN_ID},
        "string_to_param": {"*": next(iter(vectors.values()))},
        "name": embedding.name,
        "step": embedding.step,
        "sd_checkpoint": embedding.checkpoint_hash and embedding.checkpoint_hash[:_SHORT_HASH],
        "sd_checkpoint_name": embedding.checkpoint,
    }


def write(embedding: Embedding, path: Path, dtype: str = "fp32") -> None:
    """A .pt file as the WebUI saves it after training."""
    import torch

    from ti_trainer.formats import torch_pickle

    in_torch = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    torch_pickle.dump(to_dict(embedding, {encoder: each.to(in_torch) for encoder, each in embedding.vectors.items()}), path)
