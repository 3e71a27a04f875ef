"""Delete embeddings to a bin and restore them, and rename them; the files that belong to one go along with it.

    EMBEDDINGS/.deleted/<date time>/<folder>/<file>.deleted

WebUIs read embeddings from every subfolder, hidden ones too, by the files' endings: hence the ending.
"""

from __future__ import annotations

import datetime
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ti_trainer import formats
from ti_trainer.errors import ConfigError, TITrainerError
from ti_trainer.files import free_path
from ti_trainer.formats import diffusers_files, embeddings_dir
from ti_trainer.formats.embeddings_dir import ENDINGS, IMAGES
from ti_trainer.runs.plots import PREVIEWS
from ti_trainer.wording import encodable

FOLDER, ENDING = ".deleted", ".deleted"
BESIDE = (*PREVIEWS, ".txt", ".json", ".civitai.info", ".description.txt")  # files of other programs about an embedding


@dataclass(frozen=True)
class Deleted:
    """What one deletion moved into the bin; `id` is the name of its folder there."""

    id: str
    files: tuple[Path, ...]  # where they were, within the embeddings folder

    @property
    def label(self) -> str:
        """What was deleted and when, for a list that is read again with `find`."""
        main = min(self.files, key=lambda each: (_order(each), each))
        day, _, clock = self.id.partition(" ")
        return f"{encodable(main.as_posix())}, {day} {clock[:8].replace('-', ':')} [{self.id}]"


def _order(path: Path) -> int:
    """The embedding before its previews and other files."""
    ending = path.suffix.lower()
    return ENDINGS.index(ending) if ending in ENDINGS else len(ENDINGS)


def files_of(path: Path) -> list[Path]:
    """An embedding's file, and those that go with it: its second file, previews, descriptions, the optimizer's state.

    What another embedding of the same name needs stays: only the file itself then.
    """
    found = [path]
    second = diffusers_files.second_file(path)
    if second.is_file() and formats.is_second_file(second):
        found.append(second)
    optimizer = path.with_name(f"{path.name}.optim")
    found += [optimizer] * optimizer.is_file()
    others = (path.with_suffix(ending) for ending in ENDINGS if ending != path.suffix.lower() and ending not in IMAGES)
    if any(each.is_file() for each in others):
        return found
    beside = (path.with_name(path.stem + ending) for ending in BESIDE)
    return found + [each for each in beside if each.is_file() and each not in found]


def delete(folder: Path, path: Path) -> Deleted:
    """Move an embedding and the files that go with it into the bin."""
    return _store(folder, files_of(path), _move)


def put_away(folder: Path, path: Path) -> Deleted:
    """Put an embedding that is to be overwritten into the bin: a copy of its file, and the second file if it has one."""
    second = diffusers_files.second_file(path)
    files = [path] + [second] * (second.is_file() and formats.is_second_file(second))
    kept = _store(folder, files, _copy)
    for each in files[1:]:
        each.unlink()
    return kept


def bin_of(folder: Path) -> Path:
    """The bin of an embeddings folder."""
    return folder / FOLDER


def deleted(folder: Path) -> list[Deleted]:
    """What is in the bin, the latest first."""
    try:
        days = sorted(bin_of(folder).iterdir(), reverse=True)
    except OSError:
        return []
    found = []
    for day in days:
        files = sorted(each for each in day.rglob(f"*{ENDING}") if each.is_file()) if day.is_dir() else []
        places = tuple(each.relative_to(day).with_name(each.name.removesuffix(ENDING)) for each in files)
        if places:
            found.append(Deleted(day.name, places))
    return found


def find(folder: Path, label: str) -> Deleted:
    """The deletion with this label; ConfigError if there is none."""
    for each in deleted(folder):
        if each.label == label:
            return each
    message = f"{label} is no longer in the bin {bin_of(folder)}." if label else "Choose what to restore in the list."
    raise ConfigError(message)


def restore(folder: Path, what: Deleted) -> list[Path]:
    """Move files back to where they were; ConfigError if one of these places is taken, and then nothing is moved."""
    source = bin_of(folder) / what.id
    pairs = [(source / place.with_name(place.name + ENDING), folder / place) for place in what.files]
    if taken := [target for _, target in pairs if os.path.lexists(target)]:
        message = f"There is a file {taken[0]} already: rename or delete it before you restore {what.files[0].name}."
        raise ConfigError(message)
    with _all_or_none(pairs, _move):
        pass
    _remove_empty(source)
    _remove_empty(bin_of(folder))
    return [target for _, target in pairs]


def rename(folder: Path, path: Path, name: str, warn: Callable[[str], None]) -> Path:
    """Rename an embedding and the files that go with it; the new file. ConfigError for a name that is invalid or taken.

    A file that TI Trainer wrote gets the new name inside, too.
    """
    embeddings_dir.checked_new_name(name)
    existing = embeddings_dir.find(folder, name)
    if existing is not None and existing.stem.casefold() != path.stem.casefold():
        message = f"There is an embedding {name!r} already ({existing}): choose another name."
        raise ConfigError(message)
    if name == path.stem:
        message = f"It is called {name!r} already: enter another name."
        raise ConfigError(message)
    pairs = [(each, each.with_name(name + each.name.removeprefix(path.stem))) for each in files_of(path)]
    taken = [new for _, new in pairs if os.path.lexists(new) and not _is_same(path.with_name(new.name), pairs)]
    if taken:
        message = f"There is a file {taken[0]} already: rename or delete it first."
        raise ConfigError(message)
    target = pairs[0][1]
    if path.suffix.lower() in IMAGES:
        warn(f"{target.name} is a card. AUTOMATIC1111's WebUI uses the name stored in a card, which stays the same.")
    with _all_or_none(pairs, _move):
        if str(_tool_of(target)).startswith("TI Trainer"):
            formats.write(replace(formats.read(target), name=name), target)
    return target


def _tool_of(path: Path) -> object:
    """The program that wrote a .safetensors file."""
    return formats.read(path).info.get("tool") if path.suffix.lower() == ".safetensors" else None


def _is_same(new: Path, pairs: Sequence[tuple[Path, Path]]) -> bool:
    """Whether an existing file is one of those to be renamed: where case is ignored, a name may change in case only."""
    return any(old.exists() and new.exists() and old.samefile(new) for old, _ in pairs)


def _store(folder: Path, files: Sequence[Path], put: Callable[[Path, Path], object]) -> Deleted:
    now = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H-%M-%S")
    place = free_path(bin_of(folder) / now, " ")
    places = [each.relative_to(folder) for each in files]
    targets = [place / within.with_name(within.name + ENDING) for within in places]
    try:
        with _all_or_none(list(zip(files, targets, strict=True)), put):
            pass
    except OSError:
        _remove_empty(bin_of(folder))
        raise
    return Deleted(place.name, tuple(places))


@contextmanager
def _all_or_none(pairs: Sequence[tuple[Path, Path]], put: Callable[[Path, Path], object]) -> Iterator[None]:
    """Move or copy each file to its new place; if this or the block fails, all are where they were."""
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in pairs:
            target.parent.mkdir(parents=True, exist_ok=True)
            put(source, target)
            done.append((source, target))
        yield
    except (TITrainerError, OSError):
        for source, target in reversed(done):
            with suppress(OSError):
                if os.path.lexists(source) and not source.samefile(target):  # it was copied
                    target.unlink()
                else:
                    _move(target, source)
        raise


def _move(source: Path, target: Path) -> None:
    """Move a file, also to another file system, as behind a link; the link itself if it is one."""
    try:
        source.rename(target)
    except OSError:
        if source.is_symlink():
            raise
        _copy(source, target)
        source.unlink()


def _copy(source: Path, target: Path) -> None:
    """Copy a file; nothing is left of it if that fails, as on a full disk."""
    try:
        shutil.copy2(source, target)
    except OSError:
        target.unlink(missing_ok=True)
        raise


def _remove_empty(folder: Path) -> None:
    """Remove a folder and the folders in it, if there are no files in them."""
    for root, _, _ in os.walk(folder, topdown=False):
        try:
            Path(root).rmdir()
        except OSError:  # noqa: PERF203 - not empty
            return
