"""The images of a folder that is preprocessed, with its sub-folders if so wished, and what else lies there."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from ti_trainer.data.image_files import find_images, unused
from ti_trainer.data.kohya_folders import parse_folder_name
from ti_trainer.data.listing import files_below, images_among
from ti_trainer.errors import DatasetError

DEBUG_FOLDER = "debug"  # for drawings of how crops were found, which are no images of a dataset


def images_of(folder: Path, elsewhere: Collection[Path], *, recursive: bool) -> list[Path]:
    """By path. Of sub-folders: each once, though links may go in circles, and without hidden ones and `elsewhere`.

    DatasetError if there is none.
    """
    if not recursive or not folder.is_dir():
        return find_images(folder)
    found: dict[Path, Path] = {}
    for path in images_among(files_below(folder)):
        place = real(path)
        if DEBUG_FOLDER not in path.relative_to(folder).parts and not set(elsewhere).intersection(place.parents):
            found.setdefault(place, path)  # one that several links lead to, once
    if not found:
        message = f"There are no images in {folder} and its sub-folders: put some there (.png, .jpg, .webp, ...)."
        raise DatasetError(" ".join([message, *notes_on(folder, elsewhere, recursive=True)]))
    return list(found.values())


def notes_on(folder: Path, elsewhere: Collection[Path], *, recursive: bool) -> list[str]:
    """What lies there and is not used, or not taken over."""
    said = unused(folder, recursive, apart_from=elsewhere)
    names = sorted({path.parent.name for path in files_below(folder)}) if recursive else []
    repeated = [name for name in names if words_of(name)]
    if repeated:
        more = f" and {len(repeated) - 3} more" if len(repeated) > 3 else ""
        said.append(
            f"Repeats are not taken over: the number before {', '.join(repeated[:3])}{more} is left out, and each image is "
            "there once."
        )
    return said


def without_repeats(folder: str) -> str:
    """The name of a folder without the number of repeats that kohya's trainers put before it: cat for 10_cat."""
    return words_of(folder) or folder


def words_of(folder: str) -> str:
    """What kohya's trainers caption the images of such a folder with; "" for other folders."""
    named = parse_folder_name(folder)
    return named[1] if named else ""


def real(path: Path) -> Path:
    """Without links; one that leads to itself stays, where Path.resolve raises."""
    return Path(os.path.realpath(path))
