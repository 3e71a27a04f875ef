"""Sub-folders that say how often their images come up, and what they show, as kohya's trainers have them: "10_sks star".

Source: https://github.com/kohya-ss/sd-scripts/blob/main/docs/train_README-ja.md
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ti_trainer.data.pictures import find_images, folders_in, has_images, unused
from ti_trainer.wording import counted

# 20240501_party and 2024_rome begin with a date, not with a number of repeats, and 12_24 has no words.
_NAMED = re.compile(r"(?!(?:19|20)\d\d_)(\d{1,4})_(.*[^\W\d_].*)")
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
        for sentence in [*left_out, *unused(folder, apart_from=apart)]:
            warn(f"{folder.name}: {sentence}")
    return found
