"""Embeddings on disk: one file per format, and the only place that reads pickles, without ever unpickling.

A file is recognised by what is in it, so its ending need not be right. Knows nothing of models or training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ti_trainer.embedding import Embedding
from ti_trainer.errors import EmbeddingFormatError
from ti_trainer.formats import card, checks, diffusers_files, named_tensors, safetensors_file, torch_pickle, webui
from ti_trainer.formats.card import make_card, write_card
from ti_trainer.formats.checkpoint import read_checkpoint
from ti_trainer.formats.webui import checksum, read_optimizer, write_optimizer

PNG = b"\x89PNG"  # how one begins

__all__ = [
    "FORMATS",
    "Format",
    "checksum",
    "make_card",
    "read",
    "read_checkpoint",
    "read_negative",
    "read_optimizer",
    "write",
    "write_card",
    "write_optimizer",
]


class Format(NamedTuple):
    """A way to write an embedding."""

    words: str
    endings: tuple[str, ...]
    write: Callable[[Embedding, Path], None]


FORMATS = {  # `write` takes the first that has a file's ending
    "safetensors": Format("for the WebUI, kohya, ComfyUI; keeps the step", (".safetensors",), safetensors_file.write),
    "webui": Format("as the WebUI saves it", (".pt",), webui.write),
    "diffusers-bin": Format("as old diffusers, token <name>", (".bin",), diffusers_files.write),
    "card": Format("a picture that carries the embedding", (".png", ".webp"), card.write),
    "diffusers": Format("as diffusers, token <name>; SDXL in two files", (".safetensors",), diffusers_files.write),
    "kohya": Format("as kohya's scripts", (".safetensors",), named_tensors.write_kohya),
    "kohya-pt": Format("as kohya's scripts, old", (".pt",), named_tensors.write_kohya),
    "onetrainer": Format("for OneTrainer, which reads no other", (".safetensors",), named_tensors.write_onetrainer),
}


def read(path: Path) -> Embedding:
    """The embedding in a file, or in diffusers' folder or pair of files (SDXL); EmbeddingFormatError if it is none.

    Its name is the one that the file says, or else the file's. `info` has the `format`, and where known the `tool`, `token`,
    `where` (in a card) and another tool's `metadata`.
    """
    if path.is_dir():
        path = diffusers_files.main_file(path)
    embedding = _read_file(path)
    second = diffusers_files.second_file(path)
    if "token" in embedding.info and embedding.widths == {"clip_l": 768} and second.is_file():
        return diffusers_files.joined(embedding, _read_file(second))
    return embedding


def read_negative(path: Path) -> Embedding | None:
    """The negative embedding that a card has with it; None for all other files. EmbeddingFormatError if it is damaged."""
    if path.suffix.lower() != ".png":
        return None
    content = checks.content(path)
    if not content.startswith(PNG):
        return None
    with checks.explained(path):
        return card.read_negative(content, path.stem)


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
    content = checks.content(path)
    with checks.explained(path):
        if content[:2] == b"PK" or content[:1] == b"\x80":
            return _from_pickle(torch_pickle.load(BytesIO(content)), path.stem)
        if content[8:9] == b"{":
            return safetensors_file.read(content, path.stem)
        if content[:4] in (PNG, b"RIFF") or content[:3] == b"\xff\xd8\xff":
            return card.read(content, path.stem)
        message = "it is no file of torch.save, no safetensors and no PNG or WebP picture. Choose an embedding."
        raise EmbeddingFormatError(message)


def _from_pickle(data: Any, stem: str) -> Embedding:
    if isinstance(data, Tensor):
        data = {named_tensors.KOHYA_KEY: data}
    if not isinstance(data, dict) or "optimizer_state_dict" in data:
        message = "it holds no vectors (a .optim belongs to the .pt beside it). Choose an embedding."
        raise EmbeddingFormatError(message)
    if "string_to_param" in data:
        return webui.from_dict(data, stem)
    embedding = named_tensors.from_tensors(data, stem)
    pickled = {"kohya": "kohya-pt", "diffusers": "diffusers-bin"}.get(embedding.info["format"], embedding.info["format"])
    return replace(embedding, info=embedding.info | {"format": pickled})
