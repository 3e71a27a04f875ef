"""Embeddings on disk: one file per format, and the only place that reads pickles, without ever unpickling.

A file is recognised by what is in it, so its ending need not be right. Knows nothing of models or training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ti_trainer.embedding import Embedding
from ti_trainer.errors import EmbeddingFormatError
from ti_trainer.formats import (
    card,
    checks,
    diffusers_files,
    named_tensors,
    recognition,
    safetensors_file,
    torch_pickle,
    webui,
)
from ti_trainer.formats.card import make_card, write_card
from ti_trainer.formats.checkpoint import is_pickle, read_checkpoint
from ti_trainer.formats.tensor_names import spec_of
from ti_trainer.formats.webui import checksum, read_optimizer, write_optimizer

__all__ = [
    "FORMATS",
    "Format",
    "checksum",
    "is_pickle",
    "is_second_file",
    "kind_of",
    "make_card",
    "read",
    "read_checkpoint",
    "read_negative",
    "read_optimizer",
    "write",
    "write_card",
    "write_optimizer",
]


_MAX_INNER = 20  # dicts in a file's that are looked at: a checkpoint has its state_dict and a few more


class Format(NamedTuple):
    """A way to write an embedding."""

    words: str
    endings: tuple[str, ...]
    write: Callable[[Embedding, Path], None]


FORMATS = {  # `write` takes the first that has a file's ending
    "safetensors": Format("for the WebUI, kohya, ComfyUI; keeps the step", (".safetensors",), safetensors_file.write),
    "webui": Format("as the WebUI saves it", (".pt",), webui.write),
    "diffusers-bin": Format("as old diffusers, token <name>", (".bin",), diffusers_files.write),
    "card": Format("an image that carries the embedding", (".png", ".webp"), card.write),
    "diffusers": Format("as diffusers, token <name>; SDXL in two files", (".safetensors",), diffusers_files.write),
    "kohya": Format("as kohya's scripts", (".safetensors",), named_tensors.write_kohya),
    "kohya-pt": Format("as kohya's scripts, old", (".pt",), named_tensors.write_kohya),
    "onetrainer": Format("for OneTrainer, which reads no other", (".safetensors",), named_tensors.write_onetrainer),
}


def read(path: Path) -> Embedding:
    """The embedding in a file, or in diffusers' folder or pair of files (SDXL); EmbeddingFormatError if it is none.

    Its name is the one that the file says, or else the file's. `info` has the `format`, and where known the `tool`, `token`,
    `where` (in a card), `repaired` if something was put right, and another tool's `metadata`.
    """
    if path.is_dir():
        path = diffusers_files.main_file(path)
    embedding = _read_file(path)
    second = diffusers_files.second_file(path)
    if diffusers_files.may_be_first(embedding) and second.is_file():
        return diffusers_files.joined(embedding, _read_file(second))
    if set(embedding.vectors) == {"clip_g"}:
        whole = diffusers_files.first_file(path)
        advice = f"choose {whole.name}" if whole and whole.is_file() else "get the whole, with the vectors for clip_l"
        message = f"{path.name} is half of an SDXL embedding, the vectors for clip_g alone: {advice}."
        raise EmbeddingFormatError(message)
    return embedding


def is_second_file(path: Path) -> bool:
    """Whether a file is the second half of the SDXL embedding in another one beside it, and no embedding of its own."""
    first = diffusers_files.first_file(path)
    if first is None or not first.is_file():
        return False
    try:
        embedding = _read_file(first)
        return (
            diffusers_files.may_be_first(embedding) and len(diffusers_files.joined(embedding, _read_file(path)).vectors) > 1
        )
    except (EmbeddingFormatError, OSError):
        return False


def read_negative(path: Path) -> Embedding | None:
    """The negative embedding that a card has with it; None for all other files. EmbeddingFormatError if it is damaged."""
    if path.suffix.lower() != ".png":
        return None
    checks.refuse_missing(path)
    if recognition.format_of(*recognition.head_of(path)) != "png":
        return None
    with checks.explained(path):
        return card.read_negative(checks.content(path), path.stem)


def write(embedding: Embedding, path: Path, format: str | None = None) -> None:
    """Write whole or not at all, in one of FORMATS, by default the first with the ending of `path`; vectors as float32.

    EmbeddingFormatError if format and ending do not fit, if numbers are not finite, or if the format has no place for them.
    """
    ending = path.suffix.lower()
    fitting = [name for name, known in FORMATS.items() if ending in known.endings and format in (None, name)]
    if not fitting:
        known = ", ".join(f"{name} ({' '.join(form.endings)})" for name, form in FORMATS.items())
        message = f"{path.name} cannot be written as {format or 'an embedding'}; expected one of: {known}."
        raise EmbeddingFormatError(message)
    FORMATS[fitting[0]].write(checks.writable(embedding), path)


def _read_file(path: Path) -> Embedding:
    checks.refuse_missing(path)
    with path.open("rb") as file, checks.explained(path):  # a file that may not be opened is not damaged
        head, size = file.read(recognition.HEAD), path.stat().st_size
        kind = recognition.format_of(head, size)
        file.seek(0)
        if kind in ("zip", "pickle"):
            embedding = _from_pickle(torch_pickle.load(file, only_shapes=size > checks.MAX_BYTES), path.stem)
        elif kind == "safetensors":
            embedding = safetensors_file.read(file, size, path.stem)
        elif kind is not None:
            embedding = card.read(checks.content(path), kind, path.stem)
        else:
            what = recognition.stranger(head, size)
            message = (
                f"it {what or 'is no file of torch.save, no .safetensors and no PNG or WebP image. Choose an embedding.'}"
            )
            raise EmbeddingFormatError(message)
    return embedding


def _from_pickle(data: Any, stem: str) -> Embedding:
    if isinstance(data, list | tuple):
        tensors = [each for each in data if isinstance(each, Tensor)]
        if len(data) != 1 or not tensors:
            found = f"{len(data)} tensors" if len(tensors) == len(data) > 0 else "things that are no vectors"
            message = f"it is a list of {found}; expected one tensor. Choose a file with one embedding."
            raise EmbeddingFormatError(message)
        data = tensors[0]
    if isinstance(data, Tensor):
        data = {named_tensors.KOHYA_KEY: data}
    if not isinstance(data, dict) or "optimizer_state_dict" in data:
        message = "it holds no vectors (a .optim belongs to the .pt beside it). Choose an embedding."
        raise EmbeddingFormatError(message)
    if "string_to_param" in data:
        return webui.from_dict(data, stem)
    for inner in [data, *islice((each for each in data.values() if isinstance(each, dict)), _MAX_INNER)]:
        if what := spec_of(inner):
            message = f"it is {what}. Choose an embedding."
            raise EmbeddingFormatError(message)
    tensors = {key: value for key, value in data.items() if isinstance(value, Tensor)}
    embedding = named_tensors.from_tensors(tensors or data, stem)
    pickled = {"kohya": "kohya-pt", "diffusers": "diffusers-bin"}.get(embedding.info["format"], embedding.info["format"])
    return replace(embedding, info=embedding.info | {"format": pickled})
