"""Install an embedding from a file that was given: into the embeddings folder, under a checked name."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from ti_trainer import formats
from ti_trainer.embedding import Embedding, negative_name
from ti_trainer.errors import ConfigError, EmbeddingFormatError
from ti_trainer.files import atomic, checked_name
from ti_trainer.formats import diffusers_files, embeddings_dir, recognition
from ti_trainer.runs.plots import PREVIEWS
from ti_trainer.workbench import bin

IMAGE_KINDS = ("png", "webp", "jpeg")


@dataclass(frozen=True)
class Given:
    """A file that was given, read: its embedding, the negative one of a DreamArtist card, and whether it is two files."""

    path: Path
    embedding: Embedding
    negative: Embedding | None = None
    is_pair: bool = False

    @property
    def suggested_name(self) -> str:
        """The name in the file, or the file's, with characters replaced that names cannot have."""
        for name in (self.embedding.name, self.path.stem):
            bare = re.sub(r"[^\w\-. ]+", "-", name).strip(" .-")
            try:
                return embeddings_dir.checked_new_name(checked_name(bare))
            except ConfigError:
                continue
        return "embedding"


@dataclass(frozen=True)
class Installed:
    """What was written, what is to be said about it, and what was replaced and is in the bin."""

    files: tuple[Path, ...]
    notes: tuple[str, ...] = field(default_factory=tuple)


@contextmanager
def given(files: Sequence[Path]) -> Iterator[Given]:
    """Read a file, or the two files of an SDXL embedding of diffusers, which may be in different folders.

    EmbeddingFormatError for a file without an embedding; ConfigError for other files together.
    """
    if len(files) == 1:
        yield _read(files[0])
        return
    first = _first_of_pair(files)
    with tempfile.TemporaryDirectory(prefix="ti-trainer-pair-") as folder:
        for each in files:
            shutil.copyfile(each, Path(folder) / each.name)
        found = _read(Path(folder) / first.name)
        if len(found.embedding.widths) < 2:
            raise ConfigError(_TOGETHER)
        yield replace(found, is_pair=True)


_TOGETHER = "These files do not belong together: expected one file, or the two files of one SDXL embedding of diffusers."


def _first_of_pair(files: Sequence[Path]) -> Path:
    for each in files if len(files) == 2 else ():
        first = diffusers_files.first_file(each)
        if first is not None and first.name in {other.name for other in files}:
            return next(other for other in files if other.name == first.name)
    raise ConfigError(_TOGETHER)


def _read(path: Path) -> Given:
    try:
        return Given(path, formats.read(path), formats.read_negative(path))
    except EmbeddingFormatError as error:
        kind = recognition.format_of(*recognition.head_of(path)) if path.is_file() else None
        if kind not in IMAGE_KINDS or "no embedding can be found" not in str(error):
            raise
        message = (
            f"{path.name} is a picture without an embedding. If it was a card, it was re-encoded or resized on its way, as "
            "many websites do: what was in its text and in its pixels is lost. Get the original PNG, .safetensors or .pt."
        )
        raise EmbeddingFormatError(message) from error


def install(folder: Path, what: Given, name: str, *, overwrite: bool = False) -> Installed:
    """Write the embedding as NAME.safetensors, with the negative of a card and the card as preview.

    A .safetensors file is copied as it is, unless something in it must change. ConfigError for a name that is invalid, or
    taken and not to be overwritten; what is overwritten goes into the bin.
    """
    wanted = {name: what.embedding} | ({negative_name(name): what.negative} if what.negative else {})
    targets = {each: _target(folder, each, overwrite=overwrite) for each in wanted}
    notes: list[str] = []
    for each, embedding in wanted.items():
        target = targets[each]
        if target.is_file():
            kept = bin.put_away(folder, target)
            notes.append(f"The earlier {target.name} is in the bin, {bin.bin_of(folder) / kept.id}.")
        if embedding is what.embedding and _is_usable_as_it_is(what, each):
            with atomic(target) as new:
                shutil.copyfile(what.path, new)
            embeddings_dir.set_aside(target, notes.append)
        else:
            embeddings_dir.save(replace(embedding, name=each), target, notes.append)
            notes += _conversion(what, target) if embedding is what.embedding else []
    if preview := _put_preview(what, targets[name]):
        notes.append(f"The card is beside it as its preview, {preview.name}.")
    return Installed(tuple(targets.values()), tuple(notes))


def _target(folder: Path, name: str, *, overwrite: bool) -> Path:
    """The .safetensors file of this name, in the folder of an embedding that it replaces."""
    embeddings_dir.free_file(folder, name, overwrite=overwrite)
    existing = embeddings_dir.find(folder, name)
    return folder / f"{name}.safetensors" if existing is None else existing.with_suffix(".safetensors")


def _is_usable_as_it_is(what: Given, name: str) -> bool:
    """Whether a copy of the file is read by WebUIs as the same embedding under this name."""
    info = what.embedding.info
    is_safetensors = recognition.format_of(*recognition.head_of(what.path)) == "safetensors"
    says_other_name = str(info.get("tool")).startswith("TI Trainer") and what.embedding.name != name
    return is_safetensors and not what.is_pair and "repaired" not in info and not says_other_name


def _conversion(what: Given, target: Path) -> list[str]:
    """A sentence about a change of the file, if its vectors were not just copied with it."""
    source = "the two files" if what.is_pair else what.path.name
    repaired = what.embedding.info.get("repaired")
    notes = [f"{source} was read, and {repaired}."] if repaired else []
    if what.path.suffix.lower() != ".safetensors" or what.is_pair:
        notes.append(f"Converted to {target.name}; the vectors are the same.")
    return notes


def _put_preview(what: Given, target: Path) -> Path | None:
    """Put a card beside its embedding as the preview that WebUIs show, unless there is one."""
    if what.embedding.info.get("format") != "card" or what.path.suffix.lower() != ".png":
        return None
    if any(target.with_name(target.stem + ending).exists() for ending in PREVIEWS):
        return None
    preview = target.with_name(f"{target.stem}.preview.png")
    with atomic(preview) as new:
        shutil.copyfile(what.path, new)
    return preview
