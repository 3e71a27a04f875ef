"""Move images out of a dataset with their captions and masks, and back. Nothing is ever overwritten or deleted."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ti_trainer.data.image_formats import image_endings
from ti_trainer.data.listing import LEFT_OUT, images_among, is_image, unspread_of
from ti_trainer.data.mask_names import mark_of
from ti_trainer.errors import DatasetError

BELONGINGS = (".txt", ".caption", ".npz")  # captions, and latents as kohya's trainers keep them


def leave_out(folder: Path, paths: Iterable[Path], tell: Callable[[str], None] = lambda sentence: None) -> list[Path]:
    """Move images, with their captions and masks, into the subfolder "left out"; where they are now.

    Nothing is ever overwritten: a name that is taken gets a number. `tell` gets a sentence for each that cannot be moved;
    DatasetError if none can.
    """
    files = _files(folder)
    leaving, there = list(dict.fromkeys(paths)), set(files)
    staying = {path.stem for path in files if is_image(path) and path not in set(leaving)}  # may share a caption with one
    by_stem: dict[str, list[Path]] = defaultdict(list)
    troubles: list[str] = []
    for path in leaving:
        if path in there:
            by_stem[path.stem].append(path)
        else:
            troubles.append(f"{path.name} is not in {folder} any more.")
    moved = []
    beside = _by_stem(files)
    for stem, images in by_stem.items():
        together = images + ([] if stem in staying else beside[stem])
        try:
            targets = _free(folder / LEFT_OUT, stem, together)
            _move(together, targets)
        except OSError as error:
            troubles.append(_cannot_move(images, error))
            continue
        moved += targets[: len(images)]
    if troubles and not moved:
        message = f"Nothing was moved. {' '.join(troubles[:5])}"
        raise DatasetError(message)
    for each in troubles:
        tell(each)
    return moved


def bring_back(folder: Path, tell: Callable[[str], None] = lambda sentence: None) -> tuple[list[Path], list[Path]]:
    """Move everything that was left out back to where it was; images that are back, and those whose names are taken.

    `tell` gets a sentence for each that cannot be moved.
    """
    files = _files(folder / LEFT_OUT)
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for path in images_among(files):
        by_stem[path.stem].append(path)
    back: list[Path] = []
    stayed: list[Path] = []
    beside = _by_stem(files)
    for stem, images in by_stem.items():
        together = images + beside[stem]
        targets = [folder / path.name for path in together]
        if any(map(os.path.lexists, targets)):
            stayed += images
            continue
        try:
            _move(together, targets)
        except OSError as error:
            tell(_cannot_move(images, error))
            continue
        back += targets[: len(images)]
    if back and not any((folder / LEFT_OUT).iterdir()):
        (folder / LEFT_OUT).rmdir()
    return back, stayed


def _cannot_move(images: Sequence[Path], error: OSError) -> str:
    return f"{', '.join(path.name for path in images)} cannot be moved ({error.strerror or error})."


def _files(folder: Path) -> list[Path]:
    """Of a folder that there may not be; links to files are some, though nothing be there that they lead to."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_file() or (path.is_symlink() and not path.is_dir()))


def _by_stem(files: Sequence[Path]) -> Mapping[str, list[Path]]:
    """Captions, latents and masks by the stem of their image. Other files, such as model.yaml, are not moved."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        if stem := _belongs_to(path):
            found[stem].append(path)
    return found


def _belongs_to(path: Path) -> str:
    """The stem of the images that a file is a mask, a caption or latents of; "" for other files."""
    if path.suffix.lower() in BELONGINGS:
        named = Path(path.stem)  # 01, or 01.png as in 01.png.txt
        return named.stem if named.suffix.lower() in image_endings() else path.stem
    mask = unspread_of(path) or (path.stem if is_image(path) else "")
    return mask.removesuffix(mark_of(mask)) if mark_of(mask) else ""


def _free(folder: Path, stem: str, files: Sequence[Path]) -> list[Path]:
    """Where these files, whose names all begin with the stem, can go together without taking anything's place."""
    number = 1
    while True:
        begin = stem if number == 1 else f"{stem} ({number})"
        targets = [folder / (begin + path.name[len(stem) :]) for path in files]
        if not any(map(os.path.lexists, targets)):
            return targets
        number += 1


def _move(files: Sequence[Path], targets: Sequence[Path]) -> None:
    """All of them, or none: OSError if one cannot be moved."""
    done: list[tuple[Path, Path]] = []
    try:
        for path, target in zip(files, targets, strict=True):
            target.parent.mkdir(exist_ok=True)
            _move_one(path, target)
            done.append((target, path))
    except OSError:
        for path, target in done:
            with suppress(OSError):
                _move_one(path, target)
        raise


def _move_one(path: Path, target: Path) -> None:
    if path.is_symlink() and not (link := path.readlink()).is_absolute():
        leads_to = path.parent / link
        real = leads_to.parent.resolve() / leads_to.name  # its folder may be reached by links, too
        target.symlink_to(os.path.relpath(real, target.parent.resolve()))
        path.unlink()
    else:
        path.rename(target)
