"""Subfolders named "10_sks star", as kohya's trainers use them: the number of repeats, then the class tokens.

Source: https://github.com/kohya-ss/sd-scripts/blob/main/docs/train_README-ja.md
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ti_trainer.data.image_files import unused
from ti_trainer.data.listing import Listing, list_folder
from ti_trainer.wording import counted

# 20240501_party and 2024_rome begin with a date, not with a number of repeats, and 12_24 has no words.
_NAMED = re.compile(r"(?!(?:19|20)\d\d_)(\d{1,4})_(.*[^\W\d_].*)")
_NEARLY = re.compile(r"(?!\d{8}\D|(?:19|20)\d\d\D)\s*(\d+)\s*[-_. ]\s*(\S.*)")  # 10-sks, 10 _sks, 00010_sks, but no date
_REGULARISATION = re.compile(r"(?i)reg(?:ulari[sz]ation|s)?(?:[_\W].*)?")


@dataclass(frozen=True)
class RepeatFolder:
    """A subfolder of images, their repeats in an epoch, and the caption of those without a caption file."""

    path: Path
    repeats: int
    class_tokens: str


def parse_folder_name(name: str) -> tuple[int, str] | None:
    """Repeats and class tokens in a folder's name, (10, "sks star") for 10_sks star; None for other names."""
    named = _NAMED.fullmatch(name)
    return None if named is None else (int(named[1]), named[2].strip())


def repeat_folders(listing: Listing, warn: Callable[[str], None]) -> list[RepeatFolder]:
    """The folders named like "10_sks star" in a folder without images of its own.

    Calls `warn` with a sentence for each of them, and for each file or folder that is not used.
    """
    if listing.has_images:
        return []
    found, about, left_out = [], [], []
    for path in listing.subfolders:
        named = parse_folder_name(path.name)
        if named is None or not (inside := list_folder(path)).has_images:
            continue
        repeats, tokens = named
        if repeats and not _REGULARISATION.fullmatch(tokens):
            found.append(RepeatFolder(path, repeats, tokens))
            count = f"{counted(len(inside.images), 'image')}, {counted(repeats, 'repeat')}"
            about.append(f"{path.name}: {count}. Images without a caption file get the caption {tokens!r}.")
        elif repeats:
            left_out.append(
                f"{path.name} is not used, because its name says regularisation images. To use them, list the folder in a "
                ".toml file, with is_reg = true."
            )
        else:
            left_out.append(f"{path.name} is not used, because its number of repeats is 0.")
    if found:
        apart = [path for path in listing.subfolders if parse_folder_name(path.name)]
        others = [*left_out, *_about_similar(listing), *unused(listing.folder, apart_from=apart, listing=listing)]
        for sentence in [*about, *(f"{listing.folder.name}: {each}" for each in others)]:
            warn(sentence)
    return found


def about_other_names(listing: Listing) -> list[str]:
    """What the user may have meant by a folder without images, such as a folder inside it. Empty if it has images."""
    if listing.has_images:
        return []
    inside = [path for path in listing.subfolders if any(_NAMED.fullmatch(each.name) for each in _with_images(path))]
    return [
        f"{path.name} has subfolders with repeats in their names. Choose {path} as the dataset." for path in inside
    ] + _about_similar(listing)


def _about_similar(listing: Listing) -> list[str]:
    """Folders whose names resemble "10_sks star", but cannot be read as repeats and class tokens."""
    named = [
        (path.name, found)
        for path in listing.subfolders
        if not _NAMED.fullmatch(path.name) and (found := _NEARLY.fullmatch(path.name)) and _has_images(path)
    ]
    return [
        f"{name} is not used. If its number means repeats, rename the folder to '10_{found[2]}': up to 4 digits, then an "
        "underscore."
        for name, found in named
    ]


def _with_images(folder: Path) -> list[Path]:
    """Subfolders with images; none if the folder cannot be read."""
    try:
        return [path for path in list_folder(folder).subfolders if _has_images(path)]
    except PermissionError:
        return []


def _has_images(folder: Path) -> bool:
    try:
        return list_folder(folder).has_images
    except PermissionError:
        return False
