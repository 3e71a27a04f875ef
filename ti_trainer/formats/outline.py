"""What an embedding's file says about itself, from the header alone where the format has one: fast enough for 10 000 files.

V vectors, D width of a text encoder's token embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ti_trainer import formats
from ti_trainer.embedding import Embedding
from ti_trainer.formats import diffusers_files, recognition, safetensors_file
from ti_trainer.formats.checks import explained

HEADED = ".safetensors"  # the ending of files with a header


@dataclass(frozen=True)
class Outline:
    """Facts about an embedding without its vectors; `widths` are D by text encoder."""

    name: str
    family: str
    widths: Mapping[str, int]
    num_vectors: int
    step: int
    checkpoint: str | None
    info: Mapping[str, Any]

    @classmethod
    def of(cls, embedding: Embedding) -> Outline:
        """The facts about an embedding."""
        facts = (embedding.name, embedding.family, embedding.widths, embedding.num_vectors)
        return cls(*facts, embedding.step, embedding.checkpoint, embedding.info)


def outline(path: Path) -> Outline:
    """The facts about a file as `formats.read` gives them; EmbeddingFormatError as it raises.

    Only the header of a .safetensors file is read, so damaged numbers in it are not noticed. Others are read as a whole.
    """
    if path.suffix.lower() != HEADED:
        return Outline.of(formats.read(path))
    first = _header_of(path)
    if first is None:  # another format under this ending
        return Outline.of(formats.read(path))
    if diffusers_files.may_be_first(first) and diffusers_files.second_file(path).is_file():
        second = _header_of(diffusers_files.second_file(path))
        return Outline.of(first if second is None else diffusers_files.joined(first, second))
    if set(first.widths) == {"clip_g"}:
        return Outline.of(formats.read(path))  # raises: it is one half
    return Outline.of(first)


def _header_of(path: Path) -> Embedding | None:
    """An embedding of zeros with the file's shapes; None if it is no .safetensors file."""
    with path.open("rb") as file, explained(path):
        head = file.read(recognition.HEAD)
        size = path.stat().st_size
        if recognition.format_of(head, size) != "safetensors":
            return None
        file.seek(0)
        return safetensors_file.read_outline(file, size, path.stem)
