"""The types of numbers that embeddings are stored in: fp32, fp16 and bf16. They are always read as fp32."""

from __future__ import annotations

import numpy as np

from ti_trainer.embedding import Embedding
from ti_trainer.errors import EmbeddingFormatError
from ti_trainer.formats.checks import Array, Vectors

DTYPES = ("fp32", "fp16", "bf16")


def encoded(vectors: Vectors, dtype: str) -> Array:
    """The numbers as they are stored; bf16, which NumPy does not have, as the bits of uint16."""
    if dtype == "bf16":
        bits = vectors.view(np.uint32)
        even = (bits >> np.uint32(16)) & np.uint32(1)  # to the nearest, and of two equally near ones to the even one
        stored: Array = ((bits + np.uint32(0x7FFF) + even) >> np.uint32(16)).astype(np.uint16)
        return stored
    with np.errstate(over="ignore"):
        return vectors.astype(np.float16) if dtype == "fp16" else vectors


def rounded(embedding: Embedding, dtype: str) -> Embedding:
    """The embedding as it is read back from a file in this type; EmbeddingFormatError if numbers are too large for it."""
    if dtype == "fp32":
        return embedding
    vectors = {encoder: _decoded(encoded(each, dtype), dtype) for encoder, each in embedding.arrays.items()}
    if not all(np.isfinite(each).all() for each in vectors.values()):
        largest = max(float(np.abs(each).max()) for each in embedding.arrays.values())
        message = f"The embedding {embedding.name!r} has numbers up to {largest:g}, too large for {dtype}. Choose fp32."
        raise EmbeddingFormatError(message)
    return Embedding(
        embedding.name, vectors, embedding.step, embedding.checkpoint, embedding.checkpoint_hash, embedding.info
    )


def about_loss(embedding: Embedding, dtype: str) -> str:
    """How far the numbers change in this type, as a sentence; "" if they stay the same."""
    before = np.concatenate([each.ravel() for each in embedding.arrays.values()])
    after = np.concatenate([each.ravel() for each in rounded(embedding, dtype).arrays.values()])
    changed = int((before != after).sum())
    if not changed:
        return ""
    return f"{dtype}: {changed} of {before.size} numbers were rounded, by at most {np.abs(before - after).max():.2g}."


def _decoded(stored: Array, dtype: str) -> Vectors:
    if dtype == "bf16":
        numbers: Vectors = (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return numbers
    return stored.astype(np.float32)
