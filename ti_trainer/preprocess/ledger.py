"""What was made of which photo, kept in the destination: so that a second time doubles and overwrites nothing.

A photo is the same one if it lies where it lay, or has the same name, length and time of change.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ti_trainer.errors import ConfigError
from ti_trainer.files import write_bytes

FILE = ".ti_trainer-preprocess.json"
BEGUN = "begun"  # instead of settings: there may be pictures that are not entered yet
LEFT_OUT = "left out"  # pictures that somebody took out of the data set lie here
Stamp = list[int]  # length in bytes, time of change in ns


@dataclass
class Entry:
    """One photo and its pictures: by their names the stamps they were written with; `settings` only once all is done."""

    path: str
    relative: str
    stamp: Stamp
    stem: str
    settings: str = ""
    pictures: dict[str, Stamp] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)  # a .txt file's name: hash of what we wrote


@dataclass
class Ledger:
    """Every photo that this folder has pictures of."""

    folder: Path
    entries: list[Entry] = field(default_factory=list)

    @classmethod
    def of(cls, folder: Path) -> Ledger:
        """Read it, empty if there is none; ConfigError if it is damaged."""
        file = folder / FILE
        try:
            return cls(folder, [_checked(Entry(**each)) for each in json.loads(file.read_text(encoding="utf-8"))])
        except FileNotFoundError:
            return cls(folder)
        except (ValueError, TypeError) as error:
            message = f"{file} is damaged ({error}): without it nobody knows what was made here. Take another destination."
            raise ConfigError(message) from error

    def save(self) -> None:
        """Write it."""
        content = json.dumps([dataclasses.asdict(each) for each in self.entries], indent=1)
        write_bytes(self.folder / FILE, content.encode())

    def tidy(self) -> None:
        """Remove what a killed process was writing."""
        if any(each.settings == BEGUN for each in self.entries):
            stems = "|".join(re.escape(each.stem) for each in self.entries if each.settings == BEGUN)
            half = re.compile(rf"\.({stems})(-\d+)?(-flipped)?-[a-z0-9_]{{8}}\.(png|jpg|webp|txt)")
            for name in filter(half.fullmatch, self._names):
                (self.folder / name).unlink(missing_ok=True)

    def enter(self, photos: Iterable[tuple[Path, str]]) -> dict[Path, Entry]:
        """The entry of each photo (path, and path within its source); new ones get a name that nothing else has."""
        by_path = {each.path: each for each in self.entries}
        by_file = {(each.relative, *each.stamp): each for each in self.entries}
        taken = set().union(*(_names_like(each.stem.casefold()) for each in self.entries))
        found: dict[Path, Entry] = {}
        used: set[int] = set()
        for path, relative in photos:
            stamp = stamp_of(path)
            entry = by_path.get(str(path)) or by_file.get((relative, *stamp))
            if entry is None or id(entry) in used:
                entry = Entry(str(path), relative, stamp, free_stem(relative, taken))
                taken |= _names_like(entry.stem.casefold())
                self.entries.append(entry)
            used.add(id(entry))
            entry.path, entry.relative = str(path), relative
            if entry.stamp != stamp:
                entry.stamp, entry.settings = stamp, BEGUN if entry.settings else ""
            found[path] = entry
        return found

    def strangers(self, entry: Entry) -> list[str]:
        """Names of files that are in this entry's way and were not made here."""
        return [] if entry.settings else self._like(entry)

    def leftovers(self, entry: Entry, made: Iterable[str]) -> list[str]:
        """Names of pictures and captions of its earlier settings that nobody changed and that are not among those `made`."""
        old = {*entry.pictures, *entry.captions, *(self._like(entry) if entry.settings == BEGUN else ())}
        edited = {name for name in old if name.endswith(".txt") and self.was_edited(entry, self.folder / name)}
        return sorted(old - set(made) - self.changed(entry) - edited)

    def _like(self, entry: Entry) -> list[str]:
        made = re.compile(re.escape(entry.stem) + r"(-\d+)?(-flipped)?\.(png|jpg|webp|txt)", re.IGNORECASE)
        return [name for name in self._names if made.fullmatch(name)]

    def changed(self, entry: Entry) -> set[str]:
        """Names of its pictures that somebody changed, or left out; they are not made again."""
        return {
            name
            for name, stamp in entry.pictures.items()
            if (self.folder / LEFT_OUT / name).exists()
            or ((self.folder / name).exists() and stamp_of(self.folder / name) != stamp)
        }

    def is_done(self, entry: Entry, settings: str) -> bool:
        """Whether all was made with these settings and is still there."""
        return entry.settings == settings and all(
            (self.folder / name).exists() or (self.folder / LEFT_OUT / name).exists() for name in entry.pictures
        )

    def was_edited(self, entry: Entry, caption: Path) -> bool:
        """Whether somebody has changed a caption since it was written."""
        return caption.exists() and caption_hash(caption.read_bytes()) != entry.captions.get(caption.name)

    def __post_init__(self) -> None:
        self._names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []


def _checked(entry: Entry) -> Entry:
    """ValueError if it names files elsewhere: leftovers are removed by these names."""
    for name in (entry.stem, *entry.pictures, *entry.captions):
        if name != Path(name).name or "\\" in name:
            message = f"{name!r} is no name of a file"
            raise ValueError(message)
    return entry


def stamp_of(path: Path) -> Stamp:
    """What tells that a file was changed."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def caption_hash(content: bytes) -> str:
    """Of a caption's file."""
    return hashlib.sha256(content).hexdigest()[:16]


def free_stem(relative: str, taken: set[str]) -> str:
    """A name for a photo's pictures: its own, its sub-folder's before it, a number behind where pictures would collide.

    `taken`, in lower case, are those of others: a second part of `a` is `a-2`, which no photo of that name may have too.
    """
    wanted = Path(relative).with_suffix("").as_posix().replace("/", "_")
    number, stem = 1, wanted
    while taken & _names_like(stem.casefold()):
        number += 1
        stem = f"{wanted}_{number}"
    return stem


def _names_like(stem: str) -> set[str]:
    """The stem, and stems whose pictures' names it may have."""
    plain = stem.removesuffix("-flipped")
    return {stem, plain, re.sub(r"-\d+$", "", plain)}
