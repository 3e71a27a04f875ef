"""The embeddings folder: find an embedding by its name, load those that match a model, create, save."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING

from ti_trainer import __version__, formats
from ti_trainer.embedding import Embedding, dreamartist_name, initial_vectors, negative_name
from ti_trainer.errors import ConfigError, EmbeddingFormatError, explained
from ti_trainer.files import checked_name, free_path
from ti_trainer.prompts import CHUNK
from ti_trainer.wording import counted

if TYPE_CHECKING:
    from ti_trainer.model import DiffusionModel, Vectors

log = logging.getLogger(__name__)
Warn = Callable[[str], None]
NEGATIVE_NOISE = 1e-3  # as in DreamArtist; token embeddings are ten times as large
TRAINABLE = (".safetensors", ".pt")  # formats that store everything about an embedding
IMAGES = (".png", ".webp")
ENDINGS = (*TRAINABLE, ".bin", ".pti", *IMAGES)  # .pti: Replicate's cog-sdxl


def embedding_files(folder: Path) -> list[Path]:
    """Files in the folder and its subfolders that may be embeddings, sorted by path.

    Preview images and the second file of an SDXL pair are left out.
    """
    found = [path for path in _walk(folder) if path.suffix.lower() in ENDINGS and not path.name.startswith(".")]
    return sorted(path for path in found if not path.stem.endswith(".preview") and not formats.is_second_file(path))


def _walk(folder: Path) -> Iterator[Path]:
    """Every file once, also in linked folders, as in the WebUI: models are often shared with links."""
    been: set[str] = set()
    for root, inner, names in os.walk(folder, followlinks=True):
        place = os.path.realpath(root)
        if place in been:
            inner.clear()
            continue
        been.add(place)
        paths = (os.path.join(root, name) for name in names)  # noqa: PTH118 - methods of Path raise PermissionError
        yield from (Path(path) for path in paths if os.path.isfile(path) or _is_broken_link(path))  # noqa: PTH113


def _is_broken_link(path: str) -> bool:
    """Broken links are reported; pipes and devices are left out, since reading them may not end."""
    return os.path.islink(path) and not os.path.exists(path)  # noqa: PTH110, PTH114


def find(folder: Path, name: str) -> Path | None:
    """The file of an embedding; case is ignored, as in prompts and by some file systems."""
    return find_among(embedding_files(folder), name)


def find_among(files: Iterable[Path], name: str) -> Path | None:
    """As `find`, among files of a folder that was listed before."""
    found = [path for path in files if path.stem.casefold() == name.casefold()]
    return min(found, key=lambda path: (path.stem != name, *rank(path)), default=None)


def used_instead(file: Path) -> Path | None:
    """The other file in the same folder that is used for this file's name in prompts; None if this one is."""
    same = [each for each in file.parent.iterdir() if each.stem.casefold() == file.stem.casefold()]
    used = min((each for each in same if each.suffix.lower() in ENDINGS and each.is_file()), key=rank, default=file)
    return None if used == file or file.suffix.lower() not in ENDINGS else used


def rank(path: Path) -> tuple[int, int, Path]:
    """The order of files with the same name, of which the first is used: by ENDINGS, then by depth, then by path."""
    return ENDINGS.index(path.suffix.lower()), len(path.parts), path


def find_negative(folder: Path, name: str) -> Path | None:
    """The file of an embedding's negative: ours, or else that of DreamArtist's own extension."""
    return find(folder, negative_name(name)) or find(folder, dreamartist_name(name))


def load_negative(folder: Path, name: str) -> tuple[Embedding, Path]:
    """An embedding's negative and the file to save it to, never DreamArtist's own; ConfigError if there is none."""
    path, ours = find_negative(folder, name), negative_name(name)
    if path is None or path.stem.casefold() == ours.casefold():
        return load(folder, ours)
    return replace(formats.read(path), name=ours), path.with_name(f"{ours}.safetensors")


def load(folder: Path, name: str) -> tuple[Embedding, Path]:
    """An embedding under the given name, whatever the file says, and its file; ConfigError if there is none."""
    path = find(folder, name)
    if path is None:
        bare = _without_ending(PureWindowsPath(name).name)  # of a path with / or \\
        if bare != name and find(folder, bare) is not None:
            message = f"There is no embedding {name!r} in {folder}: did you mean {bare!r}? Use only the name."
            raise ConfigError(message)
        have = ", ".join(sorted({each.stem for each in embedding_files(folder)})) or "none yet"
        message = f"There is no embedding {name!r} in {folder} (found: {have}): create it first."
        raise ConfigError(message)
    return replace(formats.read(path), name=name), path


def _without_ending(name: str) -> str:
    """The name without an extension of embedding files."""
    ending = PureWindowsPath(name).suffix
    return name.removesuffix(ending) if ending.lower() in ENDINGS else name


def checked_new_name(name: str) -> str:
    """The name, if it is valid for a new embedding; else ConfigError."""
    if (bare := _without_ending(checked_name(name))) != name:
        message = f"The name {name!r} ends like a file name: leave out {name.removeprefix(bare)}, as in {bare!r}."
        raise ConfigError(message)
    return name


@dataclass(frozen=True)
class Found:
    """A file in the folder with its embedding, or the reason why it cannot be used with the model."""

    path: Path
    embedding: Embedding | None
    reason: str = ""


def survey(folder: Path, model: DiffusionModel) -> Iterator[Found]:
    """Read every file that may be an embedding, and check that the model can use it.

    An image without an embedding is left out if there is an embedding with its name: it is a preview.
    """
    files = embedding_files(folder)
    previewed = {path.with_suffix("") for path in files if path.suffix.lower() not in IMAGES}
    for path in files:
        try:
            embedding = formats.read(path)
        except (EmbeddingFormatError, OSError) as error:
            if path.suffix.lower() not in IMAGES or path.with_suffix("") not in previewed:
                yield Found(path, None, explained(error))
            continue
        if embedding.widths != dict(model.widths):
            yield Found(path, None, f"{path.name} is for {embedding.family} models, not for {model.name}.")
        elif embedding.num_vectors > CHUNK:
            yield Found(path, None, f"{path.name} has {embedding.num_vectors} vectors; a prompt has room for {CHUNK}.")
        else:
            yield Found(path, embedding)


def words(folder: Path, model: DiffusionModel) -> dict[str, Vectors]:
    """Every embedding that matches the model, by its name in prompts; logs why others are skipped."""
    found, skipped = usable(folder, model)
    for each in skipped:
        log.warning("Skipped: %s", each.reason)
    return found


def usable(folder: Path, model: DiffusionModel) -> tuple[dict[str, Vectors], list[Found]]:
    """Every embedding that matches the model, by its name in prompts, and the files that are not used."""
    fitting: list[tuple[Path, Embedding]] = []
    skipped: list[Found] = []
    for each in survey(folder, model):
        if each.embedding is None:
            skipped.append(each)
        else:
            fitting.append((each.path, each.embedding))
    used: dict[str, tuple[Path, Embedding]] = {}
    for path, embedding in sorted(fitting, key=lambda each: rank(each[0])):  # as `find` does
        first, _ = used.setdefault(path.stem.casefold(), (path, embedding))
        if first != path and path.suffix.lower() not in IMAGES:
            skipped.append(Found(path, None, f"{path}, since {first} has the same name in prompts."))
    found: dict[str, Vectors] = {path.stem: embedding.vectors for path, embedding in used.values()}
    for path, negative in negatives_in_cards(folder):
        if negative.widths == dict(model.widths) and negative.num_vectors <= CHUNK:
            found.setdefault(negative_name(path.stem), negative.vectors)
    return found | _negatives_of_dreamartist(used), skipped


def _negatives_of_dreamartist(used: Mapping[str, tuple[Path, Embedding]]) -> dict[str, Vectors]:
    """Negatives of DreamArtist's own extension, under our names, unless there is one of ours."""
    found: dict[str, Vectors] = {}
    for path, _ in used.values():
        ours, theirs = negative_name(path.stem), dreamartist_name(path.stem).casefold()
        if theirs in used and ours.casefold() not in used:
            found[ours] = used[theirs][1].vectors
    return found


def negatives_in_cards(folder: Path) -> Iterator[tuple[Path, Embedding]]:
    """Cards with a negative that is not in a file of its own, and this negative; logs which cannot be read."""
    files = embedding_files(folder)
    there = {path.stem.casefold() for path in files}
    first: dict[str, Path] = {}  # the file that is used for each name, as in `find`
    for path in sorted(files, key=rank):
        first.setdefault(path.stem, path)
    for path in files:
        name = negative_name(path.stem)
        if name.casefold() in there or first[path.stem] != path:
            continue
        try:
            negative = formats.read_negative(path)
        except (EmbeddingFormatError, OSError) as error:
            log.warning("Skipped the negative of a card: %s", error)
            continue
        if negative is not None:
            there.add(name.casefold())  # not once more for a card with the same name in a subfolder
            yield path, replace(negative, name=name)


def take_negatives_out(folder: Path) -> list[Path]:
    """Write each negative that is only in a card to a file next to it, for programs that do not read negatives."""
    files = []
    for card, negative in list(negatives_in_cards(folder)):
        files.append(card.with_name(f"{negative.name}.safetensors"))
        formats.write(negative, files[-1])
    return files


def trainable_file(file: Path, encoders: int) -> Path:
    """The file to save a trained embedding to: the same one, or a .safetensors if its format cannot store everything."""
    holds_all = file.suffix.lower() in TRAINABLE[: 1 if encoders > 1 else 2]
    return file if holds_all else file.with_suffix(".safetensors")


def save(embedding: Embedding, file: Path, warn: Warn = log.warning) -> None:
    """Write an embedding. Other files with its name are renamed, with a warning: the WebUI would use any of them."""
    formats.write(embedding, file)
    set_aside(file, warn)


def set_aside(file: Path, warn: Warn = log.warning) -> None:
    """Rename other files beside `file` that a WebUI would read under its name, with a warning for each."""
    for older in (file.with_suffix(ending) for ending in (".bin", ".pt", ".pti")):
        if older != file and older.is_file():
            aside = free_path(older.with_name(older.name + ".bak"))
            older.replace(aside)
            warn(f"{older.name} had the same name in prompts as {file.name}: it was renamed to {aside}.")


def free_file(folder: Path, name: str, encoders: int = 1, *, overwrite: bool) -> Path:
    """The file for a new embedding; ConfigError if the name is invalid or taken."""
    existing = find(folder, checked_new_name(name))
    if existing is None:
        return folder / f"{name}.safetensors"
    if not overwrite:
        message = f"There is an embedding {name!r} already ({existing}): choose another name, or overwrite it."
        raise ConfigError(message, "overwrite")
    return trainable_file(existing, encoders)


def text_left_out(model: DiffusionModel, text: str, num_vectors: int) -> str:
    """A warning if the initial text has more tokens than there are vectors; "" otherwise."""
    tokens = len(next(iter(model.token_embeddings(text).values()))) if text else 0
    if tokens <= num_vectors:
        return ""
    has, only = counted(tokens, "token"), counted(num_vectors, "vector")
    return f"The initial text {text!r} has {has} for only {only}: a part of the text is left out."


def create(
    folder: Path,
    model: DiffusionModel,
    name: str,
    init_text: str,
    num_vectors: int,
    *,
    overwrite: bool = False,
    warn: Warn = log.warning,
) -> Path:
    """Create an embedding from the tokens of an initial text; ConfigError if the name is invalid or taken."""
    path = _checked(folder, model, name, num_vectors, overwrite)
    save(_new(model, name, init_text, num_vectors), path, warn)
    if sentence := text_left_out(model, init_text, num_vectors):
        warn(sentence)
    return path


def create_pair(
    folder: Path,
    model: DiffusionModel,
    word: tuple[str, str, int],
    negative: tuple[str, int],
    *,
    overwrite: bool = False,
    warn: Warn = log.warning,
) -> tuple[Path, Path]:
    """Create an embedding (name, initial text, number of vectors) and its negative; ConfigError for none.

    A little noise is added to the negative: with the same vectors in both, DreamArtist's guidance would have no effect.
    """
    name, init_text, num_vectors = word
    unwanted = negative_name(name)
    paths = (
        _checked(folder, model, name, num_vectors, overwrite),
        _checked(folder, model, unwanted, negative[1], overwrite),
    )
    save(_new(model, name, init_text, num_vectors), paths[0], warn)
    save(_new(model, unwanted, *negative, apart=NEGATIVE_NOISE), paths[1], warn)
    for sentence in (text_left_out(model, init_text, num_vectors), text_left_out(model, *negative)):
        if sentence:
            warn(sentence)
    return paths


def _checked(folder: Path, model: DiffusionModel, name: str, num_vectors: int, overwrite: bool) -> Path:
    path = free_file(folder, name, len(model.widths), overwrite=overwrite)
    if not 1 <= num_vectors <= CHUNK:
        message = f"Number of vectors: found {num_vectors}, expected 1 to {CHUNK}, the tokens of a prompt."
        raise ConfigError(message)
    return path


def _new(model: DiffusionModel, name: str, init_text: str, num_vectors: int, apart: float = 0.0) -> Embedding:
    """An embedding from the tokens of an initial text, plus noise with the standard deviation `apart`."""
    vectors = {
        encoder: initial_vectors(tokens, num_vectors) for encoder, tokens in model.token_embeddings(init_text).items()
    }
    if apart:
        import torch

        generator = torch.Generator().manual_seed(0)
        vectors = {encoder: each + apart * torch.randn(each.shape, generator=generator) for encoder, each in vectors.items()}
    info = {"init_text": init_text, "ti_trainer": __version__}
    return Embedding(name, vectors, 0, model.name, model.checkpoint_hash, info)
