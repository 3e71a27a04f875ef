"""Checks that all formats share: sizes of files and JSON, error messages, and the vectors themselves.

V vectors, D width of a text encoder's token embeddings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ti_trainer.embedding import Embedding, encoder_of_width
from ti_trainer.errors import EmbeddingFormatError

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[Any]
Vectors = NDArray[np.float32]  # (V, D)

MAX_BYTES = 32 * 2**20  # of a file, packed and unpacked: 1000 SDXL vectors with Adam's state take 25 MB
MAX_VECTORS = 1000  # a prompt has 75 tokens
MAX_WIDTH = 4096
T5_WIDTH = 4096
MAX_BRACKETS = 100_000  # in JSON: each makes a list or dict, and an embedding has one per vector
_MAX_DIGITS = 20


def refuse_missing(path: Path) -> None:
    """EmbeddingFormatError unless it is a regular file: reading a pipe could block forever."""
    if path.is_file():
        return
    found = f"{path} is a folder, not a file." if path.is_dir() else f"There is no file {path}."
    raise EmbeddingFormatError(found)


def refuse_large(size: int) -> None:
    """EmbeddingFormatError for a file that is larger than any embedding."""
    if size > MAX_BYTES:
        message = f"it has {size} bytes, expected at most {MAX_BYTES}. It may be a checkpoint: choose an embedding."
        raise EmbeddingFormatError(message)


def content(path: Path) -> bytes:
    """The bytes of a file; EmbeddingFormatError if there is no such file or it is too large."""
    refuse_missing(path)
    with path.open("rb") as file:
        found = file.read(MAX_BYTES + 1)
    if len(found) > MAX_BYTES:
        refuse_large(path.stat().st_size)
    return found


def parsed(text: bytes, max_commas: int | None = None) -> Any:
    """The value of a JSON text; EmbeddingFormatError if it has too many parts, ValueError if it is not JSON."""
    brackets, commas = text.count(b"[") + text.count(b"{"), text.count(b",")
    if brackets > MAX_BRACKETS or (max_commas is not None and commas > max_commas):
        message = f"its JSON has {brackets} lists and {commas} commas, more than any embedding has. Choose an embedding."
        raise EmbeddingFormatError(message)
    return json.loads(text, parse_int=_parsed_int)


def _parsed_int(digits: str) -> int:
    """Converting a very long number to an integer would take too long."""
    if len(digits) > _MAX_DIGITS:
        message = f"its JSON has a number of {len(digits)} digits. Choose an embedding."
        raise EmbeddingFormatError(message)
    return int(digits)


@contextmanager
def explained(path: Path, kind: str = "an embedding") -> Iterator[None]:
    """Raise every error of the block as an EmbeddingFormatError that names the file and what it was to be."""
    try:
        yield
    except EmbeddingFormatError as error:
        message = f"{path.name} cannot be read as {kind}: {error}"
        raise EmbeddingFormatError(message) from error
    except Exception as error:  # a damaged file provokes anything in the libraries that parse it
        reason = re.sub(r" ?<_io\.[^>]*>", "", str(error))[:200]  # Pillow names a buffer by its address
        message = (
            f"{path.name} cannot be read as {kind}: it is damaged or cut short ({type(error).__name__}: {reason}). "
            "Copy or download it again."
        )
        raise EmbeddingFormatError(message) from error


def checked(value: object) -> Vectors:
    """(V, D) or (D,) floating-point array or tensor -> (V, D) float32 in its own memory; else EmbeddingFormatError."""
    numbers = value if isinstance(value, np.ndarray) else _from_pickle(value)
    shape = tuple(numbers.shape) if numbers.ndim != 1 else (1, len(numbers))
    floating = numbers.dtype.kind == "f" if isinstance(numbers, np.ndarray) else numbers.is_floating_point()
    if len(shape) != 2 or not floating or shape[0] > MAX_VECTORS or shape[1] > MAX_WIDTH:
        dtype = str(numbers.dtype).removeprefix("torch.")
        message = (
            f"it holds {dtype} numbers of shape {shape}; expected floating-point numbers of shape (vectors, width), at most "
            f"({MAX_VECTORS}, {MAX_WIDTH}). Choose an embedding."
        )
        raise EmbeddingFormatError(message)
    vectors = _as_float32(numbers).reshape(shape)  # (V, D)
    wrong = vectors.size - int(np.isfinite(vectors).sum())
    if wrong:  # a single one of them spoils every image whose prompt has it
        message = (
            f"{wrong} of its {vectors.size} numbers are not finite: training diverged. "
            "Use an earlier copy, or train again with a lower learning rate."
        )
        raise EmbeddingFormatError(message)
    return vectors


def _from_pickle(value: object) -> Tensor:
    """The value, if it is a tensor that was read from a pickle; else EmbeddingFormatError."""
    from torch import Tensor  # reading a pickle has imported torch already

    if not isinstance(value, Tensor):
        plain = isinstance(value, str | int | float | list | tuple | bytes)
        what = f"a value of type {type(value).__name__}" if plain else "an array or object of another library"
        message = f"it holds {what} where a tensor was expected. Choose an embedding."
        raise EmbeddingFormatError(message)
    if value.is_meta:  # only the shapes of a large file were read
        message = f"it has more than {MAX_BYTES} bytes. Choose an embedding."
        raise EmbeddingFormatError(message)
    return value


def _as_float32(numbers: Array | Tensor) -> Vectors:
    """A copy; numbers that are too large for float32 become infinite."""
    if isinstance(numbers, np.ndarray):
        with np.errstate(over="ignore"):
            return np.array(numbers, np.float32, order="C")
    import torch

    copy: Vectors = torch.empty(numbers.shape).copy_(numbers.detach()).numpy()
    return copy


def refuse_t5() -> NoReturn:
    """EmbeddingFormatError for vectors of a text encoder that no model here has."""
    message = (
        "it is an embedding for Flux or Stable Diffusion 3, with vectors for their text encoder T5, which are not supported "
        "here. Choose an embedding for SD 1.x, SD 2.x or SDXL."
    )
    raise EmbeddingFormatError(message)


def by_encoder(value: object) -> dict[str, Vectors]:
    """The checked vectors of a single tensor by the text encoder of its width; EmbeddingFormatError if there is none."""
    vectors = checked(value)
    if vectors.shape[1] == T5_WIDTH:
        refuse_t5()
    return {encoder_of_width(vectors.shape[1]): vectors}


def writable(embedding: Embedding) -> Embedding:
    """A copy with checked vectors, so that every file that is written can be read; else EmbeddingFormatError."""
    try:
        return replace(embedding, vectors={encoder: checked(each) for encoder, each in embedding.arrays.items()})
    except EmbeddingFormatError as error:
        message = f"The embedding {embedding.name!r} cannot be written: {error}"
        raise EmbeddingFormatError(message) from error
