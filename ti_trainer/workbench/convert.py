"""Convert embeddings between formats and dtypes, one file or a whole folder; say what the new file does not hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ti_trainer import formats
from ti_trainer.embedding import Embedding
from ti_trainer.errors import ConfigError, EmbeddingFormatError, TITrainerError, explained
from ti_trainer.files import checked_name, described
from ti_trainer.formats import bundles, diffusers_files, embeddings_dir, precision

SHORT_HASH = 10  # characters that the WebUI's files keep
_OF_THE_FILE = {"format", "tool", "token", "where", "repaired"}  # keys of `info` that describe the file that was read


Status = Literal["converted", "skipped", "failed"]


@dataclass(frozen=True)
class Wanted:
    """What to write: a format (None: by the extension), the type of numbers, another name.

    `negative`: the negative embedding in a card instead. `bundled`: the embedding of this name in a LoRA. `into`: put it
    into a copy of this LoRA.
    """

    format: str | None = None
    dtype: str = "fp32"
    name: str | None = None
    negative: bool = False
    bundled: str | None = None
    into: Path | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of one file."""

    source: Path
    status: Status
    target: Path
    about: str = ""
    notes: tuple[str, ...] = ()


def convert(source: Path, target: Path, wanted: Wanted) -> Outcome:
    """Convert one file. TITrainerError or OSError if that is not possible; an existing file stays unless told."""
    if not source.exists():
        message = f"There is no file {source}."
        raise ConfigError(message)
    _refuse_existing(target, wanted)
    embedding = read(source, wanted)
    if wanted.name is not None:
        embedding = embedding.renamed(checked_name(wanted.name))
    notes = [f"{source}: {repaired}."] if (repaired := embedding.info.get("repaired")) else []
    if wanted.into is not None:
        return _put_in(source, embedding, wanted.into, target, wanted, notes)
    format = formats.format_of(target, wanted.format)
    if format.startswith("diffusers") and len(embedding.widths) > 1:
        _refuse_existing(diffusers_files.second_file(target), wanted)
    formats.write(embedding, target, format, wanted.dtype)
    notes += [*not_held(embedding, target, format), precision.about_loss(embedding, wanted.dtype)]
    if not wanted.negative and wanted.bundled is None and (negative := _negative_of(source)):
        notes.append(f"The negative embedding in {source.name}, {negative.name}, was not converted.")
    return Outcome(source, "converted", target, about(embedding), tuple(filter(None, notes)))


def about(embedding: Embedding) -> str:
    """Name, number of vectors and family."""
    return f"{embedding.name}, {embedding.num_vectors} vectors, {embedding.family}"


def read(source: Path, wanted: Wanted) -> Embedding:
    """The embedding that is asked for; ConfigError if the file has no such embedding."""
    if wanted.bundled is not None:
        return bundles.take_out(source, wanted.bundled)
    if source.is_file() and (bundle := bundles.bundled(source)) is not None:
        names = ", ".join(list(bundle.words)[:20])
        message = f"{source} is a LoRA with embeddings in it ({names}): say which of them to take out."
        raise ConfigError(message, "bundled")
    embedding = formats.read(source, t5=True)
    if not wanted.negative:
        return embedding
    negative = formats.read_negative(source)
    if negative is None:
        message = (
            f"{source} has no second, negative embedding; expected the .png card of an embedding (not of its negative) that "
            "was trained with DreamArtist. Convert what is in this card instead."
        )
        raise ConfigError(message, "negative")
    return negative


def not_held(embedding: Embedding, target: Path, format: str) -> list[str]:
    """Sentences about what the format cannot hold of this embedding."""
    holds = formats.FORMATS[format].holds
    lost = []
    if "step" not in holds and embedding.step:
        lost.append(f"step {embedding.step}")
    if "checkpoint" not in holds:
        lost += [f"checkpoint {embedding.checkpoint}"] * bool(embedding.checkpoint)
        lost += [f"checkpoint hash {embedding.checkpoint_hash}"] * bool(embedding.checkpoint_hash)
    elif "info" not in holds and len(embedding.checkpoint_hash or "") > SHORT_HASH:
        lost.append(f"the checkpoint hash after its first {SHORT_HASH} characters")
    details = [key for key in embedding.info if key not in _OF_THE_FILE]
    if "info" not in holds and details:
        lost.append(f"details ({', '.join(details[:8])})")
    sentences = [f"The format {format} cannot hold: {', '.join(lost)}."] if lost else []
    if "name" not in holds and embedding.name != target.stem:
        sentences.append(f"The name {embedding.name} is not stored: in prompts it is the file's, {target.stem}.")
    return sentences


def convert_folder(folder: Path, into: Path, wanted: Wanted) -> Iterator[Outcome]:
    """Convert each embedding in a folder and its subfolders; yields what became of each file.

    One failure does not stop the rest. Of files with the same name, the one that prompts use is converted.
    """
    format = wanted.format or "safetensors"
    if format not in formats.FORMATS:
        message = f"Format: found {format}, expected one of {', '.join(formats.FORMATS)}."
        raise ConfigError(message, "format")
    if not folder.is_dir():
        message = f"{folder} is not a folder."
        raise ConfigError(message)
    files = sorted(embeddings_dir.embedding_files(folder), key=lambda path: (path.parent, embeddings_dir.rank(path)))
    with_embedding = {path.with_suffix("") for path in files if path.suffix.lower() not in embeddings_dir.IMAGES}
    done: dict[Path, Path] = {}
    for source in files:
        relative = source.relative_to(folder)
        target = into / relative.with_name(relative.stem + formats.FORMATS[format].extensions[0])
        if target in done:
            yield Outcome(source, "skipped", target, f"{done[target].name} has the same name and was converted")
            continue
        outcome = _attempt(source, target, wanted, format, is_preview=source.with_suffix("") in with_embedding)
        if outcome.status == "converted":
            done[target] = source
        yield outcome


def _attempt(source: Path, target: Path, wanted: Wanted, format: str, *, is_preview: bool) -> Outcome:
    if target.exists() and not wanted.overwrite:
        return Outcome(source, "skipped", target, f"{target.name} exists")
    try:
        return convert(source, target, Wanted(format, wanted.dtype, overwrite=wanted.overwrite))
    except EmbeddingFormatError as error:
        if is_preview and source.suffix.lower() in embeddings_dir.IMAGES:
            return Outcome(source, "skipped", target, "an image without an embedding")
        return Outcome(source, "failed", target, str(error))
    except ConfigError as error:
        status: Status = "skipped" if error.option == "bundled" else "failed"
        return Outcome(source, status, target, str(error))
    except TITrainerError as error:
        return Outcome(source, "failed", target, str(error))
    except OSError as error:
        return Outcome(source, "failed", target, explained(described(error, source)))


def _refuse_existing(target: Path, wanted: Wanted) -> None:
    if target.is_dir():
        message = f"{target} is a folder; expected the name of a file to write."
        raise ConfigError(message)
    if target.exists() and not wanted.overwrite:
        message = f"{target} exists: choose another name, or overwrite it."
        raise ConfigError(message, "overwrite")


def _negative_of(source: Path) -> Embedding | None:
    """The negative embedding in a card; None also if it is damaged, since it is not asked for."""
    try:
        return None if source.is_dir() else formats.read_negative(source)
    except EmbeddingFormatError:
        return None


def _put_in(source: Path, embedding: Embedding, lora: Path, target: Path, wanted: Wanted, notes: list[str]) -> Outcome:
    """Write a copy of the LoRA with the embedding in it."""
    if target.suffix.lower() != ".safetensors":
        message = f"{target}: found {target.suffix or 'no extension'}, expected .safetensors for a LoRA."
        raise ConfigError(message)
    if wanted.format is not None:
        message = f"Format: found {wanted.format}, but a LoRA with an embedding in it has only one format. Leave it out."
        raise ConfigError(message, "format")
    before = bundles.put_in(embedding, lora, target, wanted.dtype, replace=wanted.overwrite)
    lost = [f"step {embedding.step}"] * bool(embedding.step) + [f"checkpoint {embedding.checkpoint}"] * bool(
        embedding.checkpoint
    )
    if lost:
        notes.append(f"A LoRA cannot hold: {', '.join(lost)}.")
    sdxl = any(each.startswith(("lora_te1_", "lora_te2_")) for each in before.tensors)
    if sdxl != (embedding.family == "SDXL") and any(each.startswith("lora_te") for each in before.tensors):
        notes.append(
            f"{lora.name} seems to be for {'SDXL' if sdxl else 'SD 1.x or SD 2.x'}, the embedding for {embedding.family}."
        )
    if others := [each for each in before.words if each != embedding.name]:
        notes.append(f"{lora.name} also has {', '.join(others)} in it. ComfyUI joins all embeddings in a LoRA into one.")
    notes.append(precision.about_loss(embedding, wanted.dtype))
    return Outcome(source, "converted", target, f"{about(embedding)}, in {lora.name}", tuple(filter(None, notes)))
