"""The manifest in the destination: which files were made from which source image, so that a second run repeats nothing.

A source image is recognised by its path, or by its name, length and modification time. A file is ours while its signature
is the one we wrote. The signature is recorded in a journal before the file is renamed into place, so that a killed process
loses nothing.
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
JOURNAL = ".ti_trainer-preprocess.journal"  # one JSON line per change since; exists only during a run, or after a kill
LONGEST_STEM = 180  # bytes; most file systems allow 255 for the whole name
FileSignature = list[int]  # length in bytes, modification time in ns
NOT_OURS: FileSignature = [0, 0]  # the signature of no file


@dataclass
class Entry:
    """One source image, and the signatures of its images and masks by file name.

    `settings` is set once all is done. A mask that the user made has the signature NOT_OURS.
    """

    path: str
    relative: str
    signature: FileSignature
    stem: str
    settings: str = ""
    images: dict[str, FileSignature] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)  # hash of what we wrote, by file name
    masks: dict[str, FileSignature] = field(default_factory=dict)


@dataclass
class Manifest:
    """The source images that this folder has results of."""

    folder: Path
    entries: list[Entry] = field(default_factory=list)

    @classmethod
    def of(cls, folder: Path) -> Manifest:
        """Read the manifest; empty if there is none, ConfigError if it is damaged."""
        file = folder / FILE
        for each in (file, folder / JOURNAL):
            if os.path.lexists(each) and not each.is_file():
                message = f"{each} is not a regular file. Move it away, or choose another destination."
                raise ConfigError(message)
        try:
            manifest = cls(folder, [Entry(**each) for each in json.loads(file.read_text(encoding="utf-8"))])
            manifest._read_journal()
            for entry in manifest.entries:
                _check(entry)
        except FileNotFoundError:
            return cls(folder)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            message = f"{file} is damaged ({error}). It records which files were made here. Choose another destination."
            raise ConfigError(message) from error
        return manifest

    def save(self) -> None:
        """Write the manifest, and delete the journal."""
        content = json.dumps([dataclasses.asdict(each) for each in self.entries], indent=1)
        write_bytes(self.folder / FILE, content.encode())
        (self.folder / JOURNAL).unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove temporary files of a killed process."""
        if not (self.folder / JOURNAL).exists():
            return
        stems, marks = "|".join(re.escape(each.stem) for each in self.entries), "|".join(MASKS)
        half = re.compile(rf"\.({stems})(-\d+)?(-flipped)?({marks})?-[a-z0-9_]{{8}}\.(png|jpg|webp|txt)")
        for path in self.folder.iterdir():
            if half.fullmatch(path.name):
                path.unlink(missing_ok=True)

    def enter(self, images: Iterable[tuple[Path, str, FileSignature]]) -> dict[Path, Entry]:
        """The entry of each source image (path, path within the source, signature); new ones get a unique stem."""
        by_path = {each.path: each for each in self.entries}
        by_file = {(each.relative, *each.signature): each for each in self.entries}
        taken = set().union(*(_names_like(each.stem.casefold()) for each in self.entries))
        found: dict[Path, Entry] = {}
        used: set[int] = set()
        for path, relative, signature in images:
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
        """Stems of its images that the user changed or left out; they are not made again."""
        images = entry.images.items()
        return {
            Path(name).stem for name, signature in images if self._is_left_out(name) or self._is_changed(name, signature)
        }

    def is_done(self, entry: Entry, settings: str) -> bool:
        """Whether everything was made with these settings and still exists."""
        if entry.settings != settings:
            return False
        out = {Path(name).stem for name in entry.images if self._is_left_out(name)}
        masks = (name for name in entry.masks if image_of(name) not in out)
        return all((self.folder / name).exists() or self._is_left_out(name) for name in (*entry.images, *masks))

    def was_edited(self, entry: Entry, caption: Path) -> bool:
        """Whether the user wrote a caption, or changed it since we did."""
        return os.path.lexists(caption) and _hash_in(caption) != entry.captions.get(caption.name)

    def masks_to_keep(self, entry: Entry, kept: Collection[str]) -> dict[str, FileSignature]:
        """Its masks that the user changed, and those of images whose stems are in `kept`."""
        masks = entry.masks.items()
        there = {name for name in entry.masks if (self.folder / name).exists() or self._is_left_out(name)}
        return {
            name: signature
            for name, signature in masks
            if self._is_changed(name, signature) or (image_of(name) in kept and name in there)
        }

    def leftovers(self, entry: Entry, made: Collection[str]) -> list[str]:
        """Names of files of earlier settings that the user did not change and that are not in `made`.

        The image of a mask that the user painted stays: the mask alone would be taken for an image.
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
        return (self.folder / name).exists() and signature_of(self.folder / name) != signature

    def _read_journal(self) -> None:
        journal = self.folder / JOURNAL
        by_stem = {each.stem: each for each in self.entries}
        for line in journal.read_text(encoding="utf-8").splitlines() if journal.exists() else ():
            try:
                noted = json.loads(line)
            except ValueError:  # cut off by a kill: then its file was not renamed yet
                continue
            self._take_in(by_stem[noted["stem"]], noted)

    def _take_in(self, entry: Entry, noted: dict[str, Any]) -> None:
        """Apply a line of the journal, unless its file was not replaced yet."""
        entry.settings = noted.get("settings", "")
        if "settings" in noted:
            entry.images, entry.captions = noted["images"], noted["captions"]
            entry.masks = noted.get("masks", {})
            return
        path, is_caption = self.folder / noted["name"], "hash" in noted
        known = entry.captions if is_caption else entry.masks if "mask" in noted else entry.images
        if path.exists() and path.name in known:
            present = _hash_in(path) if is_caption else signature_of(path)
            if present == known[path.name]:
                return
        known[path.name] = noted["hash" if is_caption else "signature"]


def image_of(mask: str) -> str:
    """The stem of the image of a mask with this name."""
    stem = Path(mask).stem
    return stem.removesuffix(mark_of(stem))


def mask_names(image: str) -> list[str]:
    """All possible names of masks of an image with this stem."""
    return [f"{image}{mark}{ending}" for mark in MASKS for ending in sorted(image_endings())]


def is_taken_away(folder: Path, mask: str) -> bool:
    """Whether the user deleted a mask of this name on the page."""
    return (folder / LEFT_OUT / KEPT / mask).exists()


def note(folder: Path, stem: str, **line: Any) -> None:
    """Append a line to the journal; any process may do so."""
    with (folder / JOURNAL).open("ab", buffering=0) as journal:
        journal.write(json.dumps({"stem": stem, **line}).encode() + b"\n")


def signature_of(path: Path) -> FileSignature:
    """The signature of a file, which changes with it."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def caption_hash(content: bytes) -> str:
    """The hash of a caption file's content."""
    return hashlib.sha256(content).hexdigest()[:16]


def _hash_in(caption: Path) -> str:
    """The hash of a caption file; "" if it is not a regular file: a pipe would block."""
    return caption_hash(caption.read_bytes()) if caption.is_file() else ""


def free_stem(relative: str, taken: set[str]) -> str:
    """The stem for the results of a source image: its subfolder's name, its own, and a number if that is taken.

    It is never hidden, and has no repeats as in kohya's folder names. `taken` are other stems in lower case. A name must not
    collide with results of another image either: `a-2` is the second part of `a`, and `a_att` its mask. And the name of an
    image in a subfolder, such as a/mask.png, must not become that of a mask.
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
    """The stem, and the stems whose results could have this name."""
    unmarked = stem.removesuffix(mark_of(stem))
    plain = unmarked.removesuffix("-flipped")
    return {stem, unmarked, plain, re.sub(r"-\d+$", "", plain)}


def _check(entry: Entry) -> None:
    """ValueError if it names files outside the folder: leftovers are deleted by these names."""
    for name in (entry.stem, *entry.images, *entry.captions, *entry.masks):
        if name != Path(name).name or "\\" in name:
            message = f"{name!r} is not a file name"
            raise ValueError(message)
