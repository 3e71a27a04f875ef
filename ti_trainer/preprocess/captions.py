"""Existing captions of source images: text files, or the name of a folder such as kohya's 10_cat."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ti_trainer.data.caption_files import captions_among
from ti_trainer.data.caption_text import read_caption
from ti_trainer.data.listing import files_in
from ti_trainer.preprocess.manifest import signature_of
from ti_trainer.preprocess.source import words_of


@dataclass(frozen=True)
class Existing:
    """The existing caption of an image: its caption file, or else the class tokens of its folder."""

    file: Path | None = None
    words: str = ""

    def text(self) -> str | None:
        """The text of the file, None if there is none; DatasetError if it is not text."""
        return None if self.file is None else read_caption(self.file)

    def signature(self) -> str:
        """A string that changes with the caption."""
        return "-".join(map(str, signature_of(self.file))) if self.file else self.words


def captions_of(images: Iterable[Path], source: Path) -> dict[Path, Existing]:
    """The existing captions of images in a folder and its subfolders."""
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    for path in images:
        by_folder[path.parent].append(path)
    found: dict[Path, Existing] = {}
    for folder, here in by_folder.items():
        files = captions_among(files_in(folder), here)
        words = words_of(folder.name) if folder != source else ""
        found |= {path: Existing(files.get(path), words) for path in here}
    return found
