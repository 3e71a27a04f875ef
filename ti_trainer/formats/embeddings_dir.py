"""The folder of embeddings: find one by its name, load those that fit a model, create, save."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING

from ti_trainer import __version__, formats
from ti_trainer.embedding import Embedding, dreamartist_name, initial_vectors, negative_name
from ti_trainer.errors import ConfigError, EmbeddingFormatError
from ti_trainer.files import checked_name, free_path
from ti_trainer.prompts import CHUNK
from ti_trainer.wording import counted

if TYPE_CHECKING:
    from ti_trainer.model import DiffusionModel, Vectors

log = logging.getLogger(__name__)
Warn = Callable[[str], None]
NEGATIVE_NOISE = 1e-3  # as in DreamArtist; token embeddings are ten times as large
TRAINABLE = (".safetensors", ".pt")  # they keep all that we know of an embedding
IMAGES = (".png", ".webp")
ENDINGS = (*TRAINABLE, ".bin", ".pti", *IMAGES)  # .pti: Replicate's cog-sdxl


def embedding_files(folder: Path) -> list[Path]:
    """Files of the folder and its sub-folders that may hold an embedding, by path.

    Previews of one are passed over, and the second file of an SDXL pair, which belongs to the first.
    """
    found = [path for path in _walk(folder) if path.suffix.lower() in ENDINGS and not path.name.startswith(".")]
    return sorted(path for path in found if not path.stem.endswith(".preview") and not formats.is_second_file(path))


def _walk(folder: Path) -> Iterator[Path]:
    """Every file, also in linked folders, as the WebUI does, since models are often shared so; none twice."""
    been: set[str] = set()
    for root, inner, names in os.walk(folder, followlinks=True):
        place = os.path.realpath(root)
        if place in been:
            inner.clear()
            continue
        been.add(place)
        paths = (os.path.join(root, name) for name in names)  # noqa: PTH118 - Path's own questions fail where we may not look
        yield from (Path(path) for path in paths if os.path.isfile(path) or _is_broken_link(path))  # noqa: PTH113


def _is_broken_link(path: str) -> bool:
    """Such a file is told of; pipes and devices, which may never end, are not."""
    return os.path.islink(path) and not os.path.exists(path)  # noqa: PTH110, PTH114


def find(folder: Path, name: str) -> Path | None:
    """The file of an embedding. Capitals make no difference: not to prompts, and not to some file systems."""
    found = [path for path in embedding_files(folder) if path.stem.casefold() == name.casefold()]
    return min(found, key=lambda path: (path.stem != name, *_rank(path)), default=None)


def used_instead(file: Path) -> Path | None:
    """Another file beside this one that the word means in prompts; None if it means this one."""
    same = [each for each in file.parent.iterdir() if each.stem.casefold() == file.stem.casefold()]
    used = min((each for each in same if each.suffix.lower() in ENDINGS and each.is_file()), key=_rank, default=file)
    return None if used == file or file.suffix.lower() not in ENDINGS else used


def _rank(path: Path) -> tuple[int, int, Path]:
    """Of several files of a word, the first is used: by ENDINGS, then the one highest up in the folder, then by path."""
    return ENDINGS.index(path.suffix.lower()), len(path.parts), path


def find_negative(folder: Path, name: str) -> Path | None:
    """The file of a word's negative: ours, or else the one of DreamArtist's own extension."""
    return find(folder, negative_name(name)) or find(folder, dreamartist_name(name))


def load_negative(folder: Path, name: str) -> tuple[Embedding, Path]:
    """A word's negative, and the file that it goes to, which is not DreamArtist's own; ConfigError if there is none."""
    path, ours = find_negative(folder, name), negative_name(name)
    if path is None or path.stem.casefold() == ours.casefold():
        return load(folder, ours)
    return replace(formats.read(path), name=ours), path.with_name(f"{ours}.safetensors")


def load(folder: Path, name: str) -> tuple[Embedding, Path]:
    """An embedding and its file; it has the name asked for, whatever the file says. ConfigError if there is none."""
    path = find(folder, name)
    if path is None:
        bare = _without_ending(PureWindowsPath(name).name)  # of a path with / or \\
        if bare != name and find(folder, bare) is not None:
            message = f"There is no embedding {name!r} in {folder}: did you mean {bare!r}? Give the name alone."
            raise ConfigError(message)
        have = ", ".join(sorted({each.stem for each in embedding_files(folder)})) or "none yet"
        message = f"There is no embedding {name!r} in {folder} (there: {have}): create it first."
        raise ConfigError(message)
    return replace(formats.read(path), name=name), path


def _without_ending(name: str) -> str:
    """The name without an ending of embeddings' files, where it has one."""
    ending = PureWindowsPath(name).suffix
    return name.removesuffix(ending) if ending.lower() in ENDINGS else name


def checked_new_name(name: str) -> str:
    """The name, if an embedding can be created under it; else ConfigError."""
    if (bare := _without_ending(checked_name(name))) != name:
        message = f"The name {name!r} ends like a file's: give it without {name.removeprefix(bare)}, as {bare!r}."
        raise ConfigError(message)
    return name


@dataclass(frozen=True)
class Found:
    """A file of the folder: the embedding in it, if it can be used with the model, else why not."""

    path: Path
    embedding: Embedding | None
    reason: str = ""


def survey(folder: Path, model: DiffusionModel) -> Iterator[Found]:
    """Every file that may hold an embedding, and whether the model can use it; one by one, since each is read.

    An image without an embedding beside one of its name is its preview, of which there is nothing to say.
    """
    files = embedding_files(folder)
    previewed = {path.with_suffix("") for path in files if path.suffix.lower() not in IMAGES}
    for path in files:
        try:
            embedding = formats.read(path)
        except (EmbeddingFormatError, OSError) as error:
            if path.suffix.lower() not in IMAGES or path.with_suffix("") not in previewed:
                yield Found(path, None, str(error))
            continue
        if embedding.widths != dict(model.widths):
            yield Found(path, None, f"{path.name} is for {embedding.family} models, not for {model.name}.")
        elif embedding.num_vectors > CHUNK:
            yield Found(path, None, f"{path.name} has {embedding.num_vectors} vectors; a prompt has room for {CHUNK}.")
        else:
            yield Found(path, embedding)


def words(folder: Path, model: DiffusionModel) -> dict[str, Vectors]:
    """Every embedding of the folder that fits the model, by its word in prompts; logs why others do not."""
    found, passed_over = usable(folder, model)
    for each in passed_over:
        log.warning("Passed over: %s", each.reason)
    return found


def usable(folder: Path, model: DiffusionModel) -> tuple[dict[str, Vectors], list[Found]]:
    """Every embedding of the folder that fits the model, by its word in prompts, and the files that are not used."""
    fitting: list[tuple[Path, Embedding]] = []
    passed_over: list[Found] = []
    for each in survey(folder, model):
        if each.embedding is None:
            passed_over.append(each)
        else:
            fitting.append((each.path, each.embedding))
    used: dict[str, tuple[Path, Embedding]] = {}
    for path, embedding in sorted(fitting, key=lambda each: _rank(each[0])):  # as `find` does
        first, _ = used.setdefault(path.stem.casefold(), (path, embedding))
        if first != path and path.suffix.lower() not in IMAGES:
            passed_over.append(Found(path, None, f"{path}, since {first} is the same word in prompts."))
    found: dict[str, Vectors] = {path.stem: embedding.vectors for path, embedding in used.values()}
    for path, negative in negatives_in_cards(folder):
        if negative.widths == dict(model.widths) and negative.num_vectors <= CHUNK:
            found.setdefault(negative_name(path.stem), negative.vectors)
    return found | _negatives_of_dreamartist(used), passed_over


def _negatives_of_dreamartist(used: Mapping[str, tuple[Path, Embedding]]) -> dict[str, Vectors]:
    """Those of its own extension under the names that ours have, where there is none of ours."""
    found: dict[str, Vectors] = {}
    for path, _ in used.values():
        ours, theirs = negative_name(path.stem), dreamartist_name(path.stem).casefold()
        if theirs in used and ours.casefold() not in used:
            found[ours] = used[theirs][1].vectors
    return found


def negatives_in_cards(folder: Path) -> Iterator[tuple[Path, Embedding]]:
    """Cards of the folder that have a negative with them, of which there is no file; logs which cannot be read."""
    files = embedding_files(folder)
    there = {path.stem.casefold() for path in files}
    first: dict[str, Path] = {}  # what each word means, as `find` says
    for path in sorted(files, key=_rank):
        first.setdefault(path.stem, path)
    for path in files:
        name = negative_name(path.stem)
        if name.casefold() in there or first[path.stem] != path:
            continue
        try:
            negative = formats.read_negative(path)
        except (EmbeddingFormatError, OSError) as error:
            log.warning("Passed over the negative of a card: %s", error)
            continue
        if negative is not None:
            there.add(name.casefold())  # another card of the same word, in a sub-folder, must not make a second file
            yield path, replace(negative, name=name)


def take_negatives_out(folder: Path) -> list[Path]:
    """Give each negative that is only in a card a file beside it, for programs that read one embedding of an image."""
    files = []
    for card, negative in list(negatives_in_cards(folder)):
        files.append(card.with_name(f"{negative.name}.safetensors"))
        formats.write(negative, files[-1])
    return files


def swallows(model: DiffusionModel, name: str) -> bool:
    """Whether a name is made of plain words only: then every prompt with these words would mean the embedding.

    Plain are words of the vocabulary, numbers, and both together as in 3d or 1girl.
    """

    def plain(word: str) -> bool:
        letters = word.lstrip("0123456789")
        return not letters or (letters.isalpha() and len(next(iter(model.token_embeddings(letters).values()))) == 1)

    words = name.split()
    return bool(words) and all(map(plain, words))


def trainable_file(file: Path, encoders: int) -> Path:
    """Where what was learned goes: the file itself, or, for kinds that cannot hold all of it, another one beside it."""
    holds_all = file.suffix.lower() in TRAINABLE[: 1 if encoders > 1 else 2]
    return file if holds_all else file.with_suffix(".safetensors")


def save(embedding: Embedding, file: Path, warn: Warn = log.warning) -> None:
    """Write it. Another file of the word is set aside, and told of: the WebUI would read both, and take one by chance."""
    formats.write(embedding, file)
    for older in (file.with_suffix(ending) for ending in (".bin", ".pt", ".pti")):
        if older != file and older.is_file():
            aside = free_path(older.with_name(older.name + ".bak"))
            older.replace(aside)
            warn(f"{older.name} was the same word as {file.name}: it is kept as {aside}.")


def free_file(folder: Path, name: str, encoders: int = 1, *, overwrite: bool) -> Path:
    """The file that an embedding of this name goes to; ConfigError if the name will not do, or is taken."""
    existing = find(folder, checked_new_name(name))
    if existing is None:
        return folder / f"{name}.safetensors"
    if not overwrite:
        message = f"There is an embedding {name!r} already ({existing}): choose another name, or overwrite it."
        raise ConfigError(message, "overwrite")
    return trainable_file(existing, encoders)


def text_left_out(model: DiffusionModel, text: str, num_vectors: int) -> str:
    """What to say of an init text that has more tokens than there are vectors; "" of another one."""
    tokens = len(next(iter(model.token_embeddings(text).values()))) if text else 0
    if tokens <= num_vectors:
        return ""
    has, only = counted(tokens, "token"), counted(num_vectors, "vector")
    return f"The init text {text!r} has {has} for only {only}: a part of the text is left out."


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
    """Make an embedding whose vectors begin as the init text's tokens; ConfigError if the name will not do or is taken."""
    path = _checked(folder, model, name, num_vectors, overwrite)
    save(_new(model, name, init_text, num_vectors), path, warn)
    if said := text_left_out(model, init_text, num_vectors):
        warn(said)
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
    """Make an embedding (name, init text, number of vectors) and its negative, for DreamArtist; both, or ConfigError.

    The negative begins as its init text, but a little apart: one that says the same as the word would guide nowhere.
    """
    name, init_text, num_vectors = word
    unwanted = negative_name(name)
    paths = (
        _checked(folder, model, name, num_vectors, overwrite),
        _checked(folder, model, unwanted, negative[1], overwrite),
    )
    save(_new(model, name, init_text, num_vectors), paths[0], warn)
    save(_new(model, unwanted, *negative, apart=NEGATIVE_NOISE), paths[1], warn)
    for said in (text_left_out(model, init_text, num_vectors), text_left_out(model, *negative)):
        if said:
            warn(said)
    return paths


def _checked(folder: Path, model: DiffusionModel, name: str, num_vectors: int, overwrite: bool) -> Path:
    path = free_file(folder, name, len(model.widths), overwrite=overwrite)
    if not 1 <= num_vectors <= CHUNK:
        message = f"Number of vectors: found {num_vectors}, expected 1 to {CHUNK}, the tokens of a prompt."
        raise ConfigError(message)
    return path


def _new(model: DiffusionModel, name: str, init_text: str, num_vectors: int, apart: float = 0.0) -> Embedding:
    """Vectors of the init text's tokens, with noise of this standard deviation."""
    vectors = {
        encoder: initial_vectors(tokens, num_vectors) for encoder, tokens in model.token_embeddings(init_text).items()
    }
    if apart:
        import torch

        generator = torch.Generator().manual_seed(0)
        vectors = {encoder: each + apart * torch.randn(each.shape, generator=generator) for encoder, each in vectors.items()}
    info = {"init_text": init_text, "ti_trainer": __version__}
    return Embedding(name, vectors, 0, model.name, model.checkpoint_hash, info)
