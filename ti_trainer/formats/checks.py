"""What all formats share: files looked at within bounds, errors in words, vectors checked. Knows no format.

V vectors, D width of a text encoder's token embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ti_trainer.embedding import Embedding, encoder_of_width
from ti_trainer.errors import EmbeddingFormatError

MAX_BYTES = 64 * 2**20  # of a file, and of what is unpacked from it: 1000 vectors of SDXL with Adam's state are 25 MB
MAX_VECTORS = 1000  # a prompt has 75 tokens
MAX_WIDTH = 8192


def content(path: Path) -> bytes:
    """The whole file, if it is there and not too big; else EmbeddingFormatError."""
    if not path.is_file():
        message = f"There is no file {path}."
        raise EmbeddingFormatError(message)
    size = path.stat().st_size
    if not 0 < size <= MAX_BYTES:
        advice = "It may be a checkpoint: choose an embedding." if size else "Copy or download it again."
        message = f"{path.name} cannot be read as an embedding: it has {size} bytes, expected 1 to {MAX_BYTES}. {advice}"
        raise EmbeddingFormatError(message)
    return path.read_bytes()


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Raise every error of the block as an EmbeddingFormatError that names the file."""
    try:
        yield
    except EmbeddingFormatError as error:
        message = f"{path.name} cannot be read as an embedding: {error}"
        raise EmbeddingFormatError(message) from error
    except Exception as error:  # a damaged file provokes anything in the libraries that parse it
        message = (
            f"{path.name} cannot be read as an embedding: it is damaged or cut short "
            f"({type(error).__name__}: {str(error)[:200]}). Copy or download it again."
        )
        raise EmbeddingFormatError(message) from error


def checked(tensor: Tensor) -> Tensor:
    """(V, D) or (D,) of any floating-point type -> (V, D) float32 of its own memory; else EmbeddingFormatError."""
    if not isinstance(tensor, Tensor):
        message = f"it holds a {type(tensor).__name__} where a tensor was expected. Choose an embedding."
        raise EmbeddingFormatError(message)
    if tensor.ndim == 1:
        tensor = tensor.unsqueeze(0)  # (1, D)
    if tensor.ndim != 2 or not tensor.is_floating_point() or len(tensor) > MAX_VECTORS or tensor.shape[1] > MAX_WIDTH:
        message = (
            f"it holds a {tensor.dtype} tensor of shape {tuple(tensor.shape)}; expected floating-point numbers of shape "
            f"(vectors, width), at most ({MAX_VECTORS}, {MAX_WIDTH}). Choose an embedding."
        )
        raise EmbeddingFormatError(message)
    vectors = torch.empty(tensor.shape).copy_(tensor.detach())  # (V, D)
    wrong = int((~torch.isfinite(vectors)).sum())
    if wrong:  # one of them spoils every picture of every prompt that it is in
        message = (
            f"{wrong} of its {vectors.numel()} numbers are not finite: training diverged. "
            "Use an earlier copy, or train again with a lower learning rate."
        )
        raise EmbeddingFormatError(message)
    return vectors


def by_encoder(tensor: Tensor) -> dict[str, Tensor]:
    """The checked vectors of a lone tensor, under the text encoder that has its width."""
    vectors = checked(tensor)
    return {encoder_of_width(vectors.shape[1]): vectors}


def writable(embedding: Embedding) -> Embedding:
    """The embedding with checked vectors: what was never written, nobody has to refuse; else EmbeddingFormatError."""
    try:
        return replace(embedding, vectors={encoder: checked(vectors) for encoder, vectors in embedding.vectors.items()})
    except EmbeddingFormatError as error:
        message = f"The embedding {embedding.name!r} cannot be written: {error}"
        raise EmbeddingFormatError(message) from error
