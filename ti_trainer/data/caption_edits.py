"""Edit the captions of a folder. Each change makes a new state; nothing is written until it is saved.

A caption is the text file beside an image, a new one a .txt file; its tags are what commas separate, so a sentence is one
tag.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ti_trainer.config.patterns import replacing
from ti_trainer.data.caption_files import captions_among
from ti_trainer.data.caption_text import read_caption
from ti_trainer.data.image_files import find_images
from ti_trainer.data.listing import BACKUP, files_in
from ti_trainer.data.prompts import name_caption
from ti_trainer.errors import ConfigError, DatasetError
from ti_trainer.files import write_bytes

Texts = Mapping[str, "str | None"]  # by the image's stem, as a.png and a.jpg share a.txt; None: there is no file


@dataclass(frozen=True)
class Saved:
    """What was written: how many captions, how many were taken away, and where those that were there before are kept."""

    written: int
    removed: int
    backup: Path | None


@dataclass(frozen=True, eq=False)
class Captions:
    """Images and their captions. A change that changes nothing gives back the same object; others can be undone."""

    folder: Path
    images: tuple[Path, ...]
    texts: Texts
    names: Mapping[str, str]  # what the file names say; "" for nothing
    files: Mapping[str, Path]  # where captions are, or will be
    saved: Texts
    on_disk: Mapping[str, bytes | None]
    done: tuple[Texts, ...] = ()
    undone: tuple[Texts, ...] = ()

    def text(self, image: Path) -> str | None:
        """Its caption; None if it has none."""
        return self.texts[image.stem]

    def tags(self, image: Path) -> list[str]:
        """The tags of its caption."""
        return tags_of(self.texts[image.stem] or "")

    @property
    def unsaved(self) -> list[str]:
        """The stems of images whose captions are not on disk as they are here."""
        return sorted(stem for stem, text in self.texts.items() if text != self.saved[stem])

    def counts(self, among: Iterable[Path] | None = None) -> list[tuple[str, int]]:
        """How many images have each tag, the most frequent first."""
        images = self.images if among is None else among
        found = Counter(tag for image in images for tag in dict.fromkeys(self.tags(image)))
        return sorted(found.items(), key=lambda each: (-each[1], each[0]))

    def common(self, share: float = 0.9) -> list[tuple[str, float]]:
        """Tags of nearly all images, with their share of them: what they say is learned by the prompt, not by the word."""
        total = len(self.images)
        return [(tag, count / total) for tag, count in self.counts() if count / total >= share]

    def having(
        self, all_of: Collection[str] = (), none_of: Collection[str] = (), *, without_caption: bool = False
    ) -> tuple[Path, ...]:
        """Images with all of some tags and none of others; or, of these, only those without a caption."""
        wanted, unwanted = set(all_of), set(none_of)
        return tuple(
            image
            for image in self.images
            if wanted <= (tags := set(self.tags(image)))
            and not unwanted & tags
            and not (without_caption and self.text(image) is not None)
        )

    def add(self, selection: Iterable[Path], tags: str, *, front: bool = False) -> Captions:
        """Put tags, separated by commas, at the end or in front, where they are not yet."""

        def added(old: list[str]) -> list[str]:
            new = [tag for tag in dict.fromkeys(tags_of(tags)) if tag not in old]
            return new + old if front else old + new

        return self._tags_changed(selection, added)

    def remove(self, selection: Iterable[Path], tags: Collection[str]) -> Captions:
        """Take tags away."""
        return self._tags_changed(selection, lambda old: [tag for tag in old if tag not in tags])

    def rename(self, selection: Iterable[Path], tag: str, to: str) -> Captions:
        """Replace a tag by one or several others; in captions that have them already it is removed."""

        def renamed(old: list[str]) -> list[str]:
            new = [each for each in dict.fromkeys(tags_of(to)) if each == tag or each not in old]
            return [each for one in old for each in (new if one == tag else [one])]

        if not tags_of(to):
            message = "Rename: found no new name, expected a tag. To take a tag away, use Remove."
            raise ConfigError(message)
        return self._tags_changed(selection, renamed)

    def to_front(self, selection: Iterable[Path], tags: Sequence[str]) -> Captions:
        """Put tags first, in the order given: what comes first counts a little more, and is cut off last."""

        def moved(old: list[str]) -> list[str]:
            first = [tag for tag in dict.fromkeys(tags) if tag in old]
            return first + [tag for tag in old if tag not in first]

        return self._tags_changed(selection, moved)

    def replace(self, selection: Iterable[Path], search: str, by: str, *, regex: bool = False) -> Captions:
        """Replace text within captions; ConfigError for a regular expression that is invalid or slow, or gives too much."""
        if not search:
            message = "Search: the field is empty, expected the text to replace."
            raise ConfigError(message)
        replaced = replacing(search, by, "Search and replace", is_regex=regex)
        olds = {stem: self.texts[stem] for stem in _stems(selection)}
        news = {stem: replaced(old) for stem, old in olds.items() if old is not None}
        return self._changed({stem: _tidied(new) for stem, new in news.items() if new != olds[stem]})

    def edit(self, image: Path, text: str) -> Captions:
        """Give an image this caption; none, so that its file goes, if it is empty."""
        old = self.texts[image.stem]
        return self if text.strip() == (old or "") else self._changed({image.stem: text.strip() or None})

    def write(self, texts: Mapping[Path, str]) -> Captions:
        """Give several images these captions in one change; none, so that its file goes, where the text is empty."""
        return self._changed({image.stem: text.strip() or None for image, text in texts.items()})

    def take_names(self, selection: Iterable[Path]) -> Captions:
        """Make the words of the names of images without a caption their captions."""
        return self._changed({stem: self.names[stem] or None for stem in _stems(selection) if self.texts[stem] is None})

    def undo(self) -> Captions:
        """As it was before the last change."""
        if not self.done:
            return self
        return dataclasses.replace(self, texts=self.done[-1], done=self.done[:-1], undone=(*self.undone, self.texts))

    def redo(self) -> Captions:
        """As it was before the last undo."""
        if not self.undone:
            return self
        return dataclasses.replace(self, texts=self.undone[-1], done=(*self.done, self.texts), undone=self.undone[:-1])

    def save(self) -> tuple[Captions, Saved]:
        """Write what was changed, after putting what was there into a folder of its own within captions-backup.

        DatasetError, and nothing is written, if one of these files was changed by another program meanwhile.
        """
        unsaved = self.unsaved
        wanted = {stem: None if (text := self.texts[stem]) is None else text.encode() for stem in unsaved}
        found = {stem: _content(self._file(stem)) for stem in unsaved}
        changed = [self._file(stem).name for stem in unsaved if found[stem] not in (self.on_disk[stem], wanted[stem])]
        if changed:
            message = (
                f"Changed on disk since they were loaded: {_named(changed)}. Nothing was written, so that this is not lost: "
                "keep a copy of what you need of these captions, load the folder again and repeat your changes."
            )
            raise DatasetError(message)
        backup = self._backed_up({stem: content for stem, content in found.items() if content is not None})
        for stem, content in wanted.items():
            if content is None:
                self._file(stem).unlink(missing_ok=True)
            else:
                write_bytes(self._file(stem), content)
        removed = sum(content is None for content in wanted.values())
        now = dataclasses.replace(self, saved=self.texts, on_disk={**self.on_disk, **wanted})
        return now, Saved(len(wanted) - removed, removed, backup)

    def _file(self, stem: str) -> Path:
        return self.files[stem]

    def _backed_up(self, contents: Mapping[str, bytes]) -> Path | None:
        if not contents:
            return None
        begin, number = time.strftime("%Y-%m-%d %H.%M.%S"), 1
        while (folder := self.folder / BACKUP / (begin if number == 1 else f"{begin} ({number})")).exists():
            number += 1
        for stem, content in contents.items():
            write_bytes(folder / self._file(stem).name, content)
        return folder

    def _tags_changed(self, selection: Iterable[Path], change: Callable[[list[str]], list[str]]) -> Captions:
        changed: dict[str, str | None] = {}
        for stem in _stems(selection):
            old = tags_of(self.texts[stem] or "")
            new = change(old)
            if new != old:  # else a caption keeps its commas and spaces as they are
                changed[stem] = ", ".join(new) or None
        return self._changed(changed)

    def _changed(self, texts: Texts) -> Captions:
        changed = {stem: text for stem, text in texts.items() if text != self.texts[stem]}
        if not changed:
            return self
        return dataclasses.replace(self, texts={**self.texts, **changed}, done=(*self.done, self.texts), undone=())


def load(folder: Path, word_regex: str = "", join_string: str = " ") -> Captions:
    """Read the captions of a folder's images; DatasetError if there are none, or one of them is not UTF-8.

    `word_regex` and `join_string` are the training's: how words are made of the names of images without a caption.
    """
    images = tuple(find_images(folder))
    found, files = captions_among(files_in(folder), images), dict[str, Path]()
    texts: dict[str, str | None] = {}
    names: dict[str, str] = {}
    on_disk: dict[str, bytes | None] = {}
    for image in images:
        names[image.stem] = name_caption(image, word_regex, join_string) or ""
        file = found.get(image)
        if file is None and image.stem in files:
            continue
        files[image.stem] = file or folder / f"{image.stem}.txt"
        on_disk[image.stem] = file.read_bytes() if file else None
        texts[image.stem] = read_caption(file) if file else None
    return Captions(folder, images, texts, names, files, texts, on_disk)


def tags_of(text: str) -> list[str]:
    """What commas separate, without the spaces around; empty parts are left out."""
    return [tag for part in text.split(",") if (tag := part.strip())]


def difference(before: Captions, after: Captions) -> int:
    """How many images have another caption than before."""
    return sum(before.text(image) != after.text(image) for image in after.images)


def _stems(selection: Iterable[Path]) -> list[str]:
    return list(dict.fromkeys(image.stem for image in selection))


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _tidied(text: str) -> str | None:
    """Without the empty tags that a replacement may leave behind."""
    parts = text.split(",")
    return (text.strip() if all(map(str.strip, parts)) else ", ".join(tags_of(text))) or None


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
