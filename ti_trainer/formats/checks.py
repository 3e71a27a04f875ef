"""What all formats share: files looked at within bounds, errors in words, vectors checked. Knows no format.

V vectors, D width of a text encoder's token embeddings.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from ti_trainer.embedding import Embedding, encoder_of_width
from ti_trainer.errors import EmbeddingFormatError

MAX_BYTES = 32 * 2**20  # of a file, and of what is unpacked from it: 1000 vectors of SDXL with Adam's state are 25 MB
MAX_VECTORS = 1000  # a prompt has 75 tokens
MAX_WIDTH = 4096
T5_WIDTH = 4096
MAX_BRACKETS = 100_000  # in JSON: each is a list or dict to be built, and an embedding has one a vector
_MAX_DIGITS = 20


def refuse_missing(path: Path) -> None:
    """EmbeddingFormatError unless it is a file: a pipe of the same name would never end."""
    if path.is_file():
        return
    found = f"{path} is a folder, no file." if path.is_dir() else f"There is no file {path}."
    raise EmbeddingFormatError(found)


def refuse_large(size: int) -> None:
    """EmbeddingFormatError for more bytes than any embedding has."""
    if size > MAX_BYTES:
        message = f"it has {size} bytes, expected at most {MAX_BYTES}. It may be a checkpoint: choose an embedding."
        raise EmbeddingFormatError(message)


def content(path: Path) -> bytes:
    """The whole file, if it is there and not too big; else EmbeddingFormatError."""
    refuse_missing(path)
    with path.open("rb") as file:
        found = file.read(MAX_BYTES + 1)
    if len(found) > MAX_BYTES:
        refuse_large(path.stat().st_size)
    return found


def parsed(text: bytes, max_commas: int | None = None) -> Any:
    """JSON, if what it builds is bounded; EmbeddingFormatError if not, ValueError if it is none."""
    brackets, commas = text.count(b"[") + text.count(b"{"), text.count(b",")
    if brackets > MAX_BRACKETS or (max_commas is not None and commas > max_commas):
        message = f"its JSON has {brackets} lists and {commas} commas, more than any embedding. Choose an embedding."
        raise EmbeddingFormatError(message)
    return json.loads(text, parse_int=_parsed_int)


def _parsed_int(digits: str) -> int:
    """Long ones take for ever."""
    if len(digits) > _MAX_DIGITS:
        message = f"its JSON has a number of {len(digits)} digits. Choose an embedding."
        raise EmbeddingFormatError(message)
    return int(digits)


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
        plain = isinstance(tensor, str | int | float | list | tuple | bytes)
        what = f"something of the type {type(tensor).__name__}" if plain else "an array or object of another library"
        message = f"it holds {what} where a tensor was expected. Choose an embedding."
        raise EmbeddingFormatError(message)
    if tensor.is_meta:  # of a large file only the shapes were read
        message = f"it has more than {MAX_BYTES} bytes. Choose an embedding."
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
    if wrong:  # one of them spoils every image of every prompt that it is in
        message = (
            f"{wrong} of its {vectors.numel()} numbers are not finite: training diverged. "
            "Use an earlier copy, or train again with a lower learning rate."
        )
        raise EmbeddingFormatError(message)
    return vectors


def refuse_t5() -> NoReturn:
    """EmbeddingFormatError for vectors of a text encoder that no model here has."""
    message = (
        "it is an embedding for Flux or Stable Diffusion 3, with vectors for their text encoder T5, which are not supported "
        "here. Choose an embedding for SD 1.x, SD 2.x or SDXL."
    )
    raise EmbeddingFormatError(message)


def by_encoder(tensor: Tensor) -> dict[str, Tensor]:
    """The checked vectors of a lone tensor, under the text encoder that has its width; EmbeddingFormatError if none has."""
    vectors = checked(tensor)
    if vectors.shape[1] == T5_WIDTH:
        refuse_t5()
    return {encoder_of_width(vectors.shape[1]): vectors}


def writable(embedding: Embedding) -> Embedding:
    """The embedding with checked vectors: what was never written, nobody has to refuse; else EmbeddingFormatError."""
    try:
        return replace(embedding, vectors={encoder: checked(vectors) for encoder, vectors in embedding.vectors.items()})
    except EmbeddingFormatError as error:
        message = f"The embedding {embedding.name!r} cannot be written: {error}"
        raise EmbeddingFormatError(message) from error
