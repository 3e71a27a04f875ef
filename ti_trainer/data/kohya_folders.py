"""Sub-folders that say how often their images come up, and what they show, as kohya's trainers have them: "10_sks star".

Source: https://github.com/kohya-ss/sd-scripts/blob/main/docs/train_README-ja.md
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ti_trainer.data.image_files import find_images, folders_in, has_images, unused
from ti_trainer.wording import counted

# 20240501_party and 2024_rome begin with a date, not with a number of repeats, and 12_24 has no words.
_NAMED = re.compile(r"(?!(?:19|20)\d\d_)(\d{1,4})_(.*[^\W\d_].*)")
_NEARLY = re.compile(r"(?!\d{8}\D|(?:19|20)\d\d\D)\s*(\d+)\s*[-_. ]\s*(\S.*)")  # 10-sks, 10 _sks, 00010_sks, but no date
_REGULARISATION = re.compile(r"(?i)reg(?:ulari[sz]ation|s)?(?:[_\W].*)?")


@dataclass(frozen=True)
class CountedFolder:
    """A sub-folder of images, how often each comes up in an epoch, and the caption of those without a caption file."""

    path: Path
    repeats: int
    words: str


def repeats_and_words(name: str) -> tuple[int, str] | None:
    """What a folder's name says, (10, "sks star") for 10_sks star; None for other names."""
    named = _NAMED.fullmatch(name)
    return None if named is None else (int(named[1]), named[2].strip())


def counted_folders(folder: Path, warn: Callable[[str], None]) -> list[CountedFolder]:
    """Those of a folder without images of its own, if it has some; `warn` is told of them and of what is not used."""
    if has_images(folder):
        return []
    found, left_out = [], []
    for path in folders_in(folder):
        named = repeats_and_words(path.name)
        if named is None or not has_images(path):
            continue
        repeats, words = named
        if repeats and not _REGULARISATION.fullmatch(words):
            found.append(CountedFolder(path, repeats, words))
        elif repeats:
            left_out.append(
                f"{path.name} is left out, since regularisation images are no images of the thing: a .toml file can list "
                "the folder with is_reg = true."
            )
        else:
            left_out.append(f"{path.name} is left out, since its number of repeats is 0.")
    if found:
        for each in found:
            images, repeats = counted(len(find_images(each.path)), "image"), counted(each.repeats, "repeat")
            warn(f"{each.path.name}: {images}, {repeats}; the caption is {each.words!r} where there is no caption file.")
        apart = [path for path in folders_in(folder) if repeats_and_words(path.name)]
        for sentence in [*left_out, *_about_nearly(folder), *unused(folder, apart_from=apart)]:
            warn(f"{folder.name}: {sentence}")
    return found


def why_none(folder: Path) -> list[str]:
    """What of a folder without images may have been meant: one in it that holds such folders, or those of other names."""
    if not folder.is_dir() or has_images(folder):
        return []
    inside = [path for path in folders_in(folder) if any(_NAMED.fullmatch(each.name) for each in _with_images(path))]
    return [
        f"{path.name} holds folders with a number of repeats in their names: name {path} as the dataset." for path in inside
    ] + _about_nearly(folder)


def _about_nearly(folder: Path) -> list[str]:
    """Folders that seem to have a number of repeats in their names, in another way than is read."""
    named = [(path.name, _NEARLY.fullmatch(path.name)) for path in _with_images(folder) if not _NAMED.fullmatch(path.name)]
    return [
        f"{name} is not used: if its number says how often its images come up, name the folder as in '10_{found[2]}', with "
        "at most 4 digits and an underscore after them."
        for name, found in named
        if found
    ]


def _with_images(folder: Path) -> list[Path]:
    """Sub-folders with images in them; none where we may not look."""
    try:
        return [path for path in folders_in(folder) if has_images(path)]
    except PermissionError:
        return []
