"""Embedding files: read and write every format. Pickles are read here only, and never unpickled.

The format of a file that is read is determined by its content, not by its extension. torch is imported only for pickles.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ti_trainer.embedding import Embedding
from ti_trainer.errors import EmbeddingFormatError
from ti_trainer.formats import (
    card,
    checks,
    diffusers_files,
    named_tensors,
    recognition,
    safetensors_file,
    webui,
)
from ti_trainer.formats.card import make_card, write_card
from ti_trainer.formats.checkpoint import is_pickle, read_checkpoint
from ti_trainer.formats.precision import DTYPES, rounded
from ti_trainer.formats.tensor_names import spec_of

__all__ = [
    "FORMATS",
    "Format",
    "format_of",
    "is_pickle",
    "is_second_file",
    "make_card",
    "read",
    "read_checkpoint",
    "read_negative",
    "spec_of",
    "write",
    "write_card",
]


class Format(NamedTuple):
    """A format that embeddings are written in; `about` describes it in a few words.

    `holds`: what it stores besides the vectors: name, step, checkpoint, info, and vectors for t5.
    """

    about: str
    extensions: tuple[str, ...]
    write: Callable[[Embedding, Path, str], None]
    holds: frozenset[str] = frozenset()
    dtypes: tuple[str, ...] = DTYPES


_ALL = frozenset({"name", "step", "checkpoint", "info", "t5"})


FORMATS = {  # `write` uses the first one with the file's extension
    "safetensors": Format("for the WebUI, kohya, ComfyUI; keeps the step", (".safetensors",), safetensors_file.write, _ALL),
    "webui": Format("as the WebUI saves it", (".pt",), webui.write, _ALL - {"info", "t5"}),
    "diffusers-bin": Format("as older diffusers, token <name>", (".bin",), diffusers_files.write, frozenset({"name"})),
    "card": Format("an image with the embedding in it", (".png", ".webp"), card.write, _ALL - {"info", "t5"}, ("fp32",)),
    "diffusers": Format(
        "as diffusers, token <name>; SDXL in two files", (".safetensors",), diffusers_files.write, frozenset({"name"})
    ),
    "kohya": Format("as kohya's scripts", (".safetensors",), named_tensors.write_kohya),
    "kohya-pt": Format("as older kohya scripts", (".pt",), named_tensors.write_kohya),
    "onetrainer": Format(
        "for OneTrainer, which reads only this", (".safetensors",), named_tensors.write_onetrainer, frozenset({"t5"})
    ),
}


def read(path: Path, *, t5: bool = False) -> Embedding:
    """The embedding in a file, or in diffusers' folder or pair of files (SDXL); EmbeddingFormatError if there is none.

    Its name is the one stored in the file, or else the file's. `info` has the `format`, and where known the `tool`, `token`,
    `where` (in a card), `repaired` if something was corrected, and another tool's `metadata`. `t5`: also embeddings for Flux
    and SD 3, which can be converted, but neither trained nor used here.
    """
    if path.is_dir():
        path = diffusers_files.main_file(path)
    embedding = _read_file(path, t5=t5)
    second = diffusers_files.second_file(path)
    if diffusers_files.may_be_first(embedding) and second.is_file():
        return diffusers_files.joined(embedding, _read_file(second))
    if set(embedding.widths) == {"clip_g"}:
        whole = diffusers_files.first_file(path)
        advice = f"choose {whole.name}" if whole and whole.is_file() else "get the file with the vectors for clip_l, too"
        message = f"{path.name} is one half of an SDXL embedding, with the vectors for clip_g only: {advice}."
        raise EmbeddingFormatError(message)
    return embedding


def is_second_file(path: Path) -> bool:
    """Whether a file is the second half of an SDXL embedding whose first half is in the same folder."""
    first = diffusers_files.first_file(path)
    if first is None or not first.is_file():
        return False
    try:
        half = _read_file(first)
        return diffusers_files.may_be_first(half) and len(diffusers_files.joined(half, _read_file(path)).widths) > 1
    except (EmbeddingFormatError, OSError):
        return False


def read_negative(path: Path) -> Embedding | None:
    """The negative embedding in a card; None for other files. EmbeddingFormatError if it is damaged."""
    if path.suffix.lower() != ".png":
        return None
    checks.refuse_missing(path)
    if recognition.format_of(*recognition.head_of(path)) != "png":
        return None
    with checks.explained(path):
        return card.read_negative(checks.content(path), path.stem)


def write(embedding: Embedding, path: Path, format: str | None = None, dtype: str = "fp32") -> None:
    """Write atomically in one of FORMATS, by default the first one with the extension of `path`.

    EmbeddingFormatError if format and extension do not match, if numbers are not finite, or if they do not fit the format.
    """
    name = format_of(path, format)
    known = FORMATS[name]
    if dtype not in known.dtypes:
        message = f"{path.name} cannot be written in {dtype}: the format {name} holds {' and '.join(known.dtypes)} only."
        raise EmbeddingFormatError(message)
    if "t5" in embedding.widths and "t5" not in known.holds:
        able = " or ".join(each for each, form in FORMATS.items() if "t5" in form.holds)
        message = (
            f"The embedding {embedding.name!r} is for {embedding.family}, with vectors for the text encoder T5, which the "
            f"format {name} cannot hold. Choose {able}."
        )
        raise EmbeddingFormatError(message)
    known.write(rounded(checks.writable(embedding), dtype), path, dtype)


def format_of(path: Path, format: str | None = None) -> str:
    """The format that `write` uses for a path; EmbeddingFormatError if there is none."""
    extension = path.suffix.lower()
    fitting = [name for name, known in FORMATS.items() if extension in known.extensions and format in (None, name)]
    if not fitting:
        known = ", ".join(f"{name} ({' '.join(form.extensions)})" for name, form in FORMATS.items())
        message = f"{path.name} cannot be written as {format or 'an embedding'}; expected one of: {known}."
        raise EmbeddingFormatError(message)
    return fitting[0]


def _read_file(path: Path, *, t5: bool = False) -> Embedding:
    checks.refuse_missing(path)
    with path.open("rb") as file, checks.explained(path):  # PermissionError does not mean that it is damaged
        head, size = file.read(recognition.HEAD), path.stat().st_size
        kind = recognition.format_of(head, size)
        file.seek(0)
        if kind in ("zip", "pickle"):
            from ti_trainer.formats import pickled

            embedding = pickled.read(file, size, path.stem, t5=t5)
        elif kind == "safetensors":
            embedding = safetensors_file.read(file, size, path.stem, t5=t5)
        elif kind is not None:
            embedding = card.read(checks.content(path), kind, path.stem)
        else:
            what = recognition.stranger(head, size)
            message = f"it {what or 'is not a .safetensors file, a .pt file or an image. Choose an embedding.'}"
            raise EmbeddingFormatError(message)
    return embedding
