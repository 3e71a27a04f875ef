"""The source images of preprocessing, with or without subfolders, and warnings about other files there."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from ti_trainer.data.image_files import find_images, unused
from ti_trainer.data.kohya_folders import parse_folder_name
from ti_trainer.data.listing import files_below, images_among
from ti_trainer.errors import DatasetError

DEBUG_FOLDER = "debug"  # for debug images, which are not part of a dataset


def images_of(folder: Path, elsewhere: Collection[Path], *, recursive: bool) -> list[Path]:
    """The images of a folder by path; DatasetError if there are none.

    With subfolders each image is listed once, even if links form a cycle. Skips hidden folders and those in `elsewhere`.
    """
    if not recursive or not folder.is_dir():
        return find_images(folder)
    found: dict[Path, Path] = {}
    for path in images_among(files_below(folder)):
        absolute = real(path)
        if DEBUG_FOLDER not in path.relative_to(folder).parts and not set(elsewhere).intersection(absolute.parents):
            found.setdefault(absolute, path)  # several links may lead to one image
    if not found:
        message = f"There are no images in {folder} and its subfolders. Put some there (.png, .jpg, .webp, ...)."
        raise DatasetError(" ".join([message, *notes_on(folder, elsewhere, recursive=True)]))
    return list(found.values())


def notes_on(folder: Path, elsewhere: Collection[Path], *, recursive: bool) -> list[str]:
    """Sentences about files that are not used, and about repeats in folder names."""
    found = unused(folder, recursive, apart_from=elsewhere)
    names = sorted({path.parent.name for path in files_below(folder)}) if recursive else []
    repeated = [name for name in names if words_of(name)]
    if repeated:
        more = f" and {len(repeated) - 3} more" if len(repeated) > 3 else ""
        found.append(
            f"Repeats are not used: the number in {', '.join(repeated[:3])}{more} is dropped, and each image is made once."
        )
    return found


def without_repeats(folder: str) -> str:
    """A folder's name without the repeats of kohya's trainers: cat for 10_cat."""
    return words_of(folder) or folder


def words_of(folder: str) -> str:
    """The class tokens in the name of a folder such as 10_cat; "" for other names."""
    named = parse_folder_name(folder)
    return named[1] if named else ""


def real(path: Path) -> Path:
    """The path without links. A link to itself stays, where Path.resolve raises an error."""
    return Path(os.path.realpath(path))
