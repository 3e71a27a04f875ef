"""Embeddings of every family, and what it means that two are the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ti_trainer.embedding import Embedding

WIDTHS = {
    "SD 1.x": {"clip_l": 768},
    "SD 2.x": {"clip_h": 1024},
    "SDXL": {"clip_l": 768, "clip_g": 1280},
    "embedded": {"clip_l": 64},
}
ABOUT_FILE = {"format", "tool", "token", "where"}  # what a reader adds


@pytest.fixture
def make() -> Callable[..., Embedding]:
    def made(family: str = "SD 1.x", num_vectors: int = 3, **rest: object) -> Embedding:
        generator = torch.Generator().manual_seed(num_vectors)
        vectors = {
            encoder: torch.randn(num_vectors, width, generator=generator) * 0.02 for encoder, width in WIDTHS[family].items()
        }
        values = {"name": "my-cat", "step": 500, "checkpoint": "v1-5-pruned", "checkpoint_hash": "6ce0161689", **rest}
        return Embedding(vectors=vectors, **values)

    return made


@pytest.fixture
def assert_same() -> Callable[..., None]:
    def compare(read: Embedding, written: Embedding, *, vectors_only: bool = False) -> None:
        assert list(read.vectors) == list(written.vectors)
        for encoder, vectors in written.vectors.items():
            assert read.vectors[encoder].dtype == torch.float32
            assert torch.equal(read.vectors[encoder], vectors)
        assert read.name == written.name
        if not vectors_only:
            assert (read.step, read.checkpoint, read.checkpoint_hash) == (
                written.step,
                written.checkpoint,
                written.checkpoint_hash,
            )
            assert {key: value for key, value in read.info.items() if key not in ABOUT_FILE} == written.info

    return compare
