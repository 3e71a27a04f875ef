"""What was made of which photo, kept in the destination: so that a second time doubles and overwrites nothing.

A photo is the same one if it lies where it lay, or has the same name, length and time of change. A file is ours as long as
it is as we wrote it, which is noted before it gets its name: so a killed process forgets nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ti_trainer.data.image_formats import image_endings
from ti_trainer.data.listing import LEFT_OUT
from ti_trainer.data.mask_files import KEPT
from ti_trainer.data.mask_names import MASKS, like_mask, mark_of
from ti_trainer.errors import ConfigError
from ti_trainer.files import write_bytes
from ti_trainer.preprocess.source import without_repeats

FILE = ".ti_trainer-preprocess.json"
JOURNAL = ".ti_trainer-preprocess.journal"  # what came since, a line each; there only while we work, or after a kill
LONGEST_STEM = 180  # bytes: most file systems end at 255, and endings come on top
FileSignature = list[int]  # length in bytes, time of change in ns
NOT_OURS: FileSignature = [0, 0]  # no image's


@dataclass
class Entry:
    """One photo, its images and their masks, by their names the stamps they were written with.

    `settings` only once all is done. A mask that was there before, and is not ours, has the stamp NOT_OURS.
    """

    path: str
    relative: str
    signature: FileSignature
    stem: str
    settings: str = ""
    images: dict[str, FileSignature] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)  # a .txt file's name: hash of what we wrote
    masks: dict[str, FileSignature] = field(default_factory=dict)


@dataclass
class Manifest:
    """Every photo that this folder has images of."""

    folder: Path
    entries: list[Entry] = field(default_factory=list)

    @classmethod
    def of(cls, folder: Path) -> Manifest:
        """Read it, empty if there is none; ConfigError if it is damaged."""
        file = folder / FILE
        for each in (file, folder / JOURNAL):
            if os.path.lexists(each) and not each.is_file():
                message = f"{each} is no file: take it away, or take another destination."
                raise ConfigError(message)
        try:
            manifest = cls(folder, [Entry(**each) for each in json.loads(file.read_text(encoding="utf-8"))])
            manifest._read_journal()
            for entry in manifest.entries:
                _check(entry)
        except FileNotFoundError:
            return cls(folder)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            message = f"{file} is damaged ({error}): without it nobody knows what was made here. Take another destination."
            raise ConfigError(message) from error
        return manifest

    def save(self) -> None:
        """Write it, the journal in it."""
        content = json.dumps([dataclasses.asdict(each) for each in self.entries], indent=1)
        write_bytes(self.folder / FILE, content.encode())
        (self.folder / JOURNAL).unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove what a killed process was writing."""
        if not (self.folder / JOURNAL).exists():
            return
        stems, marks = "|".join(re.escape(each.stem) for each in self.entries), "|".join(MASKS)
        half = re.compile(rf"\.({stems})(-\d+)?(-flipped)?({marks})?-[a-z0-9_]{{8}}\.(png|jpg|webp|txt)")
        for path in self.folder.iterdir():
            if half.fullmatch(path.name):
                path.unlink(missing_ok=True)

    def enter(self, photos: Iterable[tuple[Path, str, FileSignature]]) -> dict[Path, Entry]:
        """The entry of each photo (path, path within its source, stamp); new ones get a name that nothing else has."""
        by_path = {each.path: each for each in self.entries}
        by_file = {(each.relative, *each.signature): each for each in self.entries}
        taken = set().union(*(_names_like(each.stem.casefold()) for each in self.entries))
        found: dict[Path, Entry] = {}
        used: set[int] = set()
        for path, relative, signature in photos:
            entry = by_path.get(str(path)) or by_file.get((relative, *signature))
            if entry is None or id(entry) in used:
                entry = Entry(str(path), relative, signature, free_stem(relative, taken))
                taken |= _names_like(entry.stem.casefold())
                self.entries.append(entry)
            used.add(id(entry))
            entry.path, entry.relative = str(path), relative
            if entry.signature != signature:
                entry.signature, entry.settings = signature, ""
            found[path] = entry
        return found

    def changed(self, entry: Entry) -> set[str]:
        """Names, without their endings, of its images that somebody changed, or left out: they are not made again."""
        images = entry.images.items()
        return {
            Path(name).stem for name, signature in images if self._is_left_out(name) or self._is_changed(name, signature)
        }

    def is_done(self, entry: Entry, settings: str) -> bool:
        """Whether all was made with these settings and is still there."""
        if entry.settings != settings:
            return False
        out = {Path(name).stem for name in entry.images if self._is_left_out(name)}
        masks = (name for name in entry.masks if image_of(name) not in out)
        return all((self.folder / name).exists() or self._is_left_out(name) for name in (*entry.images, *masks))

    def was_edited(self, entry: Entry, caption: Path) -> bool:
        """Whether somebody has changed a caption since it was written, or wrote it in the first place."""
        return os.path.lexists(caption) and _hash_in(caption) != entry.captions.get(caption.name)

    def masks_to_keep(self, entry: Entry, kept: Collection[str]) -> dict[str, FileSignature]:
        """Its masks that somebody painted over, and those of images that are `kept`, by their stems."""
        masks = entry.masks.items()
        there = {name for name in entry.masks if (self.folder / name).exists() or self._is_left_out(name)}
        return {
            name: signature
            for name, signature in masks
            if self._is_changed(name, signature) or (image_of(name) in kept and name in there)
        }

    def leftovers(self, entry: Entry, made: Collection[str]) -> list[str]:
        """Names of what earlier settings made, that nobody changed and that is not among what was `made` now.

        A mask that somebody painted keeps its image: alone it would be taken for one.
        """
        images = [name for name, signature in (entry.images | entry.masks).items() if not self._is_changed(name, signature)]
        captions = [name for name in entry.captions if not self.was_edited(entry, self.folder / name)]
        gone, stems = {*images, *captions} - set(made), {Path(name).stem for name in made}
        return sorted(name for name in gone if Path(name).stem in stems or not self._has_mask(entry, name, gone))

    def _has_mask(self, entry: Entry, image: str, but: Collection[str]) -> bool:
        names = mask_names(Path(image).stem) if image in entry.images else ()
        return any((self.folder / name).exists() for name in names if name not in but)

    def _is_left_out(self, name: str) -> bool:
        return (self.folder / LEFT_OUT / name).exists() or is_taken_away(self.folder, name)

    def _is_changed(self, name: str, signature: FileSignature) -> bool:
        return (self.folder / name).exists() and stamp_of(self.folder / name) != signature

    def _read_journal(self) -> None:
        journal = self.folder / JOURNAL
        by_stem = {each.stem: each for each in self.entries}
        for line in journal.read_text(encoding="utf-8").splitlines() if journal.exists() else ():
            try:
                noted = json.loads(line)
            except ValueError:  # cut off by a kill: then the file that it is about has not got its name
                continue
            self._take_in(by_stem[noted["stem"]], noted)

    def _take_in(self, entry: Entry, noted: dict[str, Any]) -> None:
        """A line of the journal. What it says is not so yet where the file that was there before is there still."""
        entry.settings = noted.get("settings", "")
        if "settings" in noted:
            entry.images, entry.captions = noted["images"], noted["captions"]
            entry.masks = noted.get("masks", {})
            return
        path, is_caption = self.folder / noted["name"], "hash" in noted
        known = entry.captions if is_caption else entry.masks if "mask" in noted else entry.images
        if path.exists() and path.name in known:
            present = _hash_in(path) if is_caption else stamp_of(path)
            if present == known[path.name]:
                return
        known[path.name] = noted["hash" if is_caption else "stamp"]


def image_of(mask: str) -> str:
    """The stem of the image that a mask of this name belongs to."""
    stem = Path(mask).stem
    return stem.removesuffix(mark_of(stem))


def mask_names(image: str) -> list[str]:
    """What masks beside an image of this stem may be called, whoever made them."""
    return [f"{image}{mark}{ending}" for mark in MASKS for ending in sorted(image_endings())]


def is_taken_away(folder: Path, mask: str) -> bool:
    """Whether somebody took a mask of this name away in the panel where they are painted."""
    return (folder / LEFT_OUT / KEPT / mask).exists()


def note(folder: Path, stem: str, **line: Any) -> None:
    """Add a line to the journal, from any process."""
    with (folder / JOURNAL).open("ab", buffering=0) as journal:
        journal.write(json.dumps({"stem": stem, **line}).encode() + b"\n")


def stamp_of(path: Path) -> FileSignature:
    """What tells that a file was changed."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def caption_hash(content: bytes) -> str:
    """Of a caption's file."""
    return hashlib.sha256(content).hexdigest()[:16]


def _hash_in(caption: Path) -> str:
    """Of a caption's file; none for what is no file, such as a pipe, which would keep us waiting."""
    return caption_hash(caption.read_bytes()) if caption.is_file() else ""


def free_stem(relative: str, taken: set[str]) -> str:
    """A name for a photo's images: its own, its sub-folder's before it, a number behind where images would collide.

    It is never hidden, and has not the number of repeats that kohya's trainers put before a folder's name.

    `taken`, in lower case, are those of others: a second part of `a` is `a-2`, which no photo of that name may have too, and
    `a_att` is its mask. Nor may the image of a sub-folder, such as a/mask.png, become one by its name.
    """
    *folders, name = Path(relative).with_suffix("").parts
    wanted = "_".join((*map(without_repeats, folders), name)).replace("\\", "_").lstrip(".") or "image"
    if len(wanted.encode(errors="surrogateescape")) > LONGEST_STEM:
        wanted = wanted.encode(errors="surrogateescape")[:LONGEST_STEM].decode(errors="ignore")
    number, stem = 1, wanted
    while taken & _names_like(stem.casefold()) or mark_of(stem) or (folders and like_mask(stem)):
        number += 1
        stem = f"{wanted}_{number}"
    return stem


def _names_like(stem: str) -> set[str]:
    """The stem, and stems whose images' names it may have."""
    unmarked = stem.removesuffix(mark_of(stem))
    plain = unmarked.removesuffix("-flipped")
    return {stem, unmarked, plain, re.sub(r"-\d+$", "", plain)}


def _check(entry: Entry) -> None:
    """ValueError if it names files elsewhere: leftovers are removed by these names."""
    for name in (entry.stem, *entry.images, *entry.captions, *entry.masks):
        if name != Path(name).name or "\\" in name:
            message = f"{name!r} is no name of a file"
            raise ValueError(message)
