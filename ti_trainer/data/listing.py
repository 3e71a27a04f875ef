"""What is in a folder: its files, subfolders and images, from one listing. Decided by name; no file is read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ti_trainer.data.image_formats import image_endings
from ti_trainer.data.mask_names import without_masks

FLIPPED = "-flipped"  # the end of the names of mirrored copies
LEFT_OUT = "left out"  # the subfolder for images that the user moved out of a dataset
BACKUP = "captions-backup"  # the subfolder for captions as they were before an edit
UNSPREAD = ".unspread"  # the ending of a mask as it was before it was spread; not an image's, so training ignores it


@dataclass(frozen=True)
class Listing:
    """The entries of a folder by name, without hidden ones. A link counts as what it points to.

    `others` are neither files nor folders: pipes, and links to nothing.
    """

    folder: Path
    files: tuple[Path, ...]
    folders: tuple[Path, ...]
    others: tuple[Path, ...]

    @cached_property
    def images(self) -> list[Path]:
        """Files that are images by name, without masks."""
        return images_among(self.files)

    @property
    def has_images(self) -> bool:
        """Whether any file is an image by name, masks included."""
        return any(map(is_image, self.files))

    @property
    def subfolders(self) -> list[Path]:
        """Folders that may hold images of a dataset: not the ones for what was left out or backed up."""
        return [path for path in self.folders if path.name not in (LEFT_OUT, BACKUP)]


def list_folder(folder: Path) -> Listing:
    """List a folder once. OSError if it cannot be read."""
    files: list[Path] = []
    folders: list[Path] = []
    others: list[Path] = []
    with os.scandir(folder) as entries:
        for each in entries:
            if not each.name.startswith("."):
                (files if _is_file(each) else folders if _is_folder(each) else others).append(folder / each.name)
    return Listing(folder, tuple(sorted(files)), tuple(sorted(folders)), tuple(sorted(others)))


def files_in(folder: Path) -> list[Path]:
    """The files of a folder by name, without hidden ones."""
    return list(list_folder(folder).files)


def files_below(folder: Path) -> Iterator[Path]:
    """The files of a folder and its subfolders, see `listings_below`."""
    for each in listings_below(folder):
        yield from each.files


def listings_below(folder: Path) -> Iterator[Listing]:
    """List a folder, then each folder below it, linked ones too; each once, even if links form a cycle.

    Skips hidden folders, and those for images that were left out and for backups. PermissionError only for the first.
    """
    seen, waiting = set[str](), [folder]
    while waiting:
        here = waiting.pop()
        if (real := os.path.realpath(here)) in seen:
            continue
        seen.add(real)
        try:
            listing = list_folder(here)
        except PermissionError:
            if here == folder:
                raise
            continue
        yield listing
        waiting += reversed(listing.subfolders)


def is_image(path: Path) -> bool:
    """Whether a file is an image by its name, and not hidden."""
    return path.suffix.lower() in image_endings() and not path.name.startswith(".")


def images_among(paths: Iterable[Path]) -> list[Path]:
    """The images among files of one or several folders, sorted, without masks."""
    return without_masks(sorted(path for path in paths if is_image(path)))


def unspread_of(path: Path) -> str:
    """The stem of the mask that a file is the earlier state of: "a_att" for a_att.unspread, a_att-2.unspread; else ""."""
    return re.sub(r"-\d+$", "", path.stem) if path.suffix == UNSPREAD else ""


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself
        return False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
