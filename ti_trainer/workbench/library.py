"""The embeddings folder as a library: every file with what it holds; searched, sorted, filtered.

Listing reads the headers of .safetensors files only. Other files are read as a whole, so many at once are read within a
limit of time, and the rest are listed as not read yet. Facts are kept while a file's size and time stay the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

from ti_trainer.errors import ConfigError, EmbeddingFormatError, explained
from ti_trainer.formats import card, embeddings_dir
from ti_trainer.formats.embeddings_dir import IMAGES
from ti_trainer.formats.outline import HEADED, Outline, outline
from ti_trainer.prompts import CHUNK
from ti_trainer.wording import encodable

SORTS = ("name", "date", "family", "vectors")
WHOLE_S = 1.0  # to read files without a header in one listing
MOST_KEPT = 50_000  # facts about files
NO_EMBEDDING = "a picture without an embedding"


@dataclass(frozen=True)
class Entry:
    """A file of the folder. Without an outline, `problem` says why it is no embedding; "" if it was not read yet."""

    path: Path
    size: int
    changed_ns: int
    outline: Outline | None = None
    problem: str = ""
    used_instead: Path | None = None  # the file that its name means in prompts, if that is another one

    @property
    def name(self) -> str:
        """Its name in prompts."""
        return self.path.stem

    @property
    def is_read(self) -> bool:
        """Whether it is known what it holds."""
        return self.outline is not None or bool(self.problem)

    def unusable(self, widths: Mapping[str, int] | None) -> str:
        """Why it cannot be used with a model of these widths; "" if it can, or if that is not known."""
        if self.problem:
            return self.problem
        if self.outline is None:
            return ""
        if self.used_instead is not None:
            return f"{self.name} in a prompt means {self.used_instead.name}"
        if widths is not None and dict(self.outline.widths) != dict(widths):
            return f"for {self.outline.family} models"
        if self.outline.num_vectors > CHUNK:
            return f"{self.outline.num_vectors} vectors, and a prompt has room for {CHUNK}"
        return ""


@dataclass(frozen=True)
class Query:
    """What to list: words that the path contains, the order, and only what a model of these widths can use."""

    search: str = ""
    sort: str = "name"
    usable_with: Mapping[str, int] | None = None

    @property
    def needs_facts(self) -> bool:
        """Whether every file must be read to answer it."""
        return self.usable_with is not None or self.sort in ("family", "vectors")


@dataclass(frozen=True)
class Listing:
    """The entries that match a query in its order; `total` files in the folder, `unread` of which were not read yet."""

    entries: tuple[Entry, ...]
    total: int
    unread: int = 0


def names(folder: Path) -> list[str]:
    """The names of a folder's embeddings, for a list; of images only those with a card's text: pixels are not read."""
    files = embeddings_dir.embedding_files(folder)
    found = {path.stem for path in files if path.suffix.lower() not in IMAGES}
    found |= {path.stem for path in files if path.stem not in found and card.is_marked(path)}
    return sorted((name for name in found if encodable(name) == name), key=str.casefold)  # others cannot be in a prompt


class Library:
    """The files of an embeddings folder; safe to use from any thread."""

    def __init__(self, folder: Path, whole_s: float = WHOLE_S) -> None:
        """Nothing is read before `listing`, which takes up to `whole_s` seconds for files without a header."""
        self.folder, self.whole_s = folder, whole_s
        self._known: dict[tuple[str, int, int], tuple[Outline | None, str]] = {}
        self._lock = Lock()

    def listing(self, query: Query | None = None) -> Listing:
        """List the folder. Files without a header are read only if the query depends on it."""
        query = query or Query()
        entries = self._entries()
        total, words = len(entries), query.search.casefold().split()
        found = entries
        if words:
            found = [each for each in entries if all(word in self.place_of(each.path).casefold() for word in words)]
        until = time.monotonic() + (self.whole_s if query.needs_facts else 0)
        found = [self._read(each, until) for each in found]
        unread = sum(not each.is_read for each in found)
        if query.usable_with is not None:
            found = [each for each in found if each.outline is not None and not each.unusable(query.usable_with)]
        return Listing(tuple(sorted(found, key=_SORTS[query.sort])), total, unread if query.needs_facts else 0)

    def read(self, entries: Iterable[Entry]) -> list[Entry]:
        """The same entries, each read: for those that are shown."""
        return [self._read(each, float("inf")) for each in entries]

    def find(self, place: str) -> Entry:
        """The entry at this place, as of `place_of`; what a page sends is never used as a path. ConfigError if gone."""
        for each in self._entries():
            if self.place_of(each.path) == place:
                return self._read(each, float("inf"))
        message = f"There is no {place} in {self.folder} any more: list it again." if place else "Choose an embedding first."
        raise ConfigError(message)

    def place_of(self, path: Path) -> str:
        """Where a file is within the folder, with slashes; for display, and for `find`."""
        return encodable(path.relative_to(self.folder).as_posix())

    def _entries(self) -> list[Entry]:
        """Every file that may be an embedding. Images beside an embedding of their name are previews, and left out."""
        if self.folder.is_dir():
            os.scandir(self.folder).close()  # raises PermissionError, where a walk finds nothing
        files = embeddings_dir.embedding_files(self.folder)
        images = [path for path in files if path.suffix.lower() in IMAGES]
        if images:
            embeddings = {path.with_suffix("") for path in files if path.suffix.lower() not in IMAGES}
            previews = {path for path in images if path.with_suffix("") in embeddings}
            files = [path for path in files if path not in previews]
        first: dict[str, Path] = {}
        for path in files:
            name = path.stem.casefold()
            if name not in first or embeddings_dir.rank(path) < embeddings_dir.rank(first[name]):
                first[name] = path
        entries = []
        for path in files:
            try:
                found = path.stat()
            except OSError as error:
                entries.append(Entry(path, 0, 0, problem=f"cannot be read: {error.strerror}"))
                continue
            used = first[path.stem.casefold()]
            entries.append(Entry(path, found.st_size, found.st_mtime_ns, used_instead=None if used == path else used))
        return entries

    def _read(self, entry: Entry, until: float) -> Entry:
        """The entry with its facts, if they are known, cheap, or it is not later than `until`."""
        key = (str(entry.path), entry.size, entry.changed_ns)
        facts = self._known.get(key)
        if facts is None:
            if entry.problem or (entry.path.suffix.lower() != HEADED and time.monotonic() >= until):
                return entry
            facts = _facts(entry.path)
            with self._lock:
                if len(self._known) >= MOST_KEPT:
                    self._known.clear()
                self._known[key] = facts
        return replace(entry, outline=facts[0], problem=facts[1])


def _facts(path: Path) -> tuple[Outline | None, str]:
    try:
        return outline(path), ""
    except (EmbeddingFormatError, OSError) as error:
        if path.suffix.lower() in IMAGES and "no embedding can be found" in str(error):
            return None, NO_EMBEDDING
        return None, explained(error) or type(error).__name__


def _by_family(entry: Entry) -> tuple[bool, str, str]:
    known = entry.outline
    return known is None, known.family if known else "", entry.name.casefold()


def _by_vectors(entry: Entry) -> tuple[int, str]:
    return -entry.outline.num_vectors if entry.outline else 1, entry.name.casefold()


_SORTS = {
    "name": lambda entry: (entry.name.casefold(), entry.path),
    "date": lambda entry: (-entry.changed_ns, entry.name.casefold()),
    "family": _by_family,
    "vectors": _by_vectors,
}


def page_of(entries: Sequence[Entry], number: int, size: int) -> tuple[Sequence[Entry], int, int]:
    """The entries of a page, its number from 1, and the number of pages; a number beyond them is corrected."""
    pages = max(1, -(-len(entries) // size))
    number = min(max(1, number), pages)
    return entries[(number - 1) * size : number * size], number, pages
