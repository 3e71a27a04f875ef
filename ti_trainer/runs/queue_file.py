"""The file of the queue: the runs that wait to be started. It is in the folder of runs and survives a restart.

Several processes may change it in turn. Imports nothing heavy, so that listing and changing the queue is quick.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import RLock
from typing import Any

from ti_trainer.errors import ConfigError
from ti_trainer.files import free_path, write_bytes
from ti_trainer.runs import locks
from ti_trainer.runs.queue_entry import Entries, Entry, from_json, to_json
from ti_trainer.wording import counted

log = logging.getLogger(__name__)
FILE = "queue.json"
MOST = 100  # entries
TWICE = "queue"  # the `option` of a ConfigError for what is in the queue already
LARGEST_BYTES = 16 * 2**20
CUT_OFF = (
    "The program ended while this was trained. If the run had begun, it is in the list of runs and can be continued there; "
    "trying again starts a new one."
)


@dataclass
class QueueFile:
    """The entries in their order. Thread-safe. `warning` says what was wrong with the file when it was read.

    While it is `held`, no program starts a run; a queue that has nothing to train is not held.
    """

    path: Path
    warning: str = ""
    _entries: Entries = ()
    _held: bool = False
    _seen: tuple[int, ...] | None = None
    _readable: bool = True
    _lock: RLock = field(default_factory=RLock)

    def read(self) -> Entries:
        """The entries. A damaged file is set aside, and those of its entries that can be read are kept."""
        with self._lock:
            if (seen := self._signature()) != self._seen:
                self._seen = seen
                self._entries, self._held = self._load()
            return self._entries

    @property
    def held(self) -> bool:
        """Whether the user wants no further run to be started, in any program."""
        with self._lock:
            self.read()
            return self._held

    def append(self, entry: Entry) -> int:
        """Add an entry; its place among those that wait. ConfigError if it is there already, or if there are too many."""

        def appended(entries: Entries) -> Entries:
            if len(entries) >= MOST:
                message = f"There are {len(entries)} runs in the queue, expected at most {MOST}: remove some first."
                raise ConfigError(message)
            _refuse_twice(entries, entry)
            return (*entries, entry)

        return sum(each.state == "waiting" for each in self.change(appended))

    def remove(self, entry_id: str) -> None:
        """Remove an entry; ConfigError if it is gone or is being trained."""

        def removed(entries: Entries) -> list[Entry]:
            found = _movable(entries, entry_id)
            return [each for each in entries if each is not found]

        self.recover()
        self.change(removed)

    def move(self, entry_id: str, by: int) -> None:
        """Move an entry down by as many places, up for a negative number; ConfigError if it is gone or is being trained."""

        def moved(entries: Entries) -> list[Entry]:
            found = _movable(entries, entry_id)
            rest = [each for each in entries if each is not found]
            first = sum(each.state == "running" for each in entries)  # nothing goes before what is trained now
            rest.insert(min(max(entries.index(found) + by, first), len(rest)), found)
            return rest

        self.recover()
        self.change(moved)

    def try_again(self, entry_id: str, **changes: Any) -> None:
        """Have an entry that failed wait again, in its place and with these fields changed.

        ConfigError if it is gone or is being trained.
        """

        def waiting(entries: Entries) -> list[Entry]:
            found = _movable(entries, entry_id)
            return replaced(entries, replace(found, state="waiting", message="", option="", **changes))

        self.recover()
        self.change(waiting)

    def running(self) -> AbstractContextManager[None]:
        """The lock of the process that trains an entry; ConfigError if another one does."""
        return locks.held(locks.of_file(self.path.with_suffix(".running")), "A run of the queue", log.info)

    def recover(self) -> None:
        """Entries whose program ended while they were trained become failed ones."""
        try:
            if all(each.state != "running" for each in self.read()):
                return
            with self.running():
                self.change(
                    lambda entries: [
                        replace(each, state="failed", message=CUT_OFF) if each.state == "running" else each
                        for each in entries
                    ]
                )
        except (ConfigError, OSError) as error:  # another process trains it, or the file cannot be written
            log.debug("The queue: %s", error)

    def change(self, change: Callable[[Entries], Sequence[Entry]] = tuple, *, held: bool | None = None) -> Entries:
        """Replace the entries by what `change` returns, and whether the queue is held.

        OSError or ConfigError if the file cannot be read or written.
        """
        with self._lock, locks.briefly(locks.of_file(self.path), "The queue"):
            self.warning = ""
            if not self._readable:
                self._seen = None  # it may have been repaired
            before = self.read()
            if not self._readable:
                raise ConfigError(self.warning)
            after = tuple(change(before))
            held = any(each.state != "failed" for each in after) and (self._held if held is None else held)
            if (after, held) != (before, self._held):
                self._write(after, held)
            return after

    def _write(self, entries: Entries, held: bool) -> None:
        content = {"entries": [to_json(each) for each in entries], **({"held": True} if held else {})}
        write_bytes(self.path, json.dumps(content, indent=2, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        self._entries, self._held, self._seen = entries, held, self._signature()

    def _signature(self) -> tuple[int, ...] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _load(self) -> tuple[Entries, bool]:
        self._readable = True
        try:
            content = self._content()
        except FileNotFoundError:
            return (), False
        except OSError as error:
            self._readable = False
            reason = error.strerror or error
            self._warned(f"The queue {self.path} cannot be read ({reason}): remove or repair this file.")
            return (), False
        entries, held, wrong = parsed(content)
        if wrong:
            self._set_aside(entries, wrong)
        return entries, held

    def _content(self) -> bytes:
        """The file's content, cut off where it is too large to be a queue; OSError if it cannot be read."""
        with self.path.open("rb") as file:
            return file.read(LARGEST_BYTES)

    def _set_aside(self, entries: Entries, wrong: str) -> None:
        kept = f"{counted(len(entries), 'run')} could be read and kept" if entries else "The queue is empty now"
        aside = free_path(self.path.with_name(f"{self.path.name}.damaged"), "-")
        try:
            self.path.replace(aside)
            self._write(entries, held=False)
        except OSError as error:
            self._warned(f"The queue {self.path} is damaged ({wrong}) and cannot be replaced: {error.strerror}.")
        else:
            self._warned(f"The queue {self.path} was damaged: {wrong}. {kept}; the damaged file is {aside}.")

    def _warned(self, text: str) -> None:
        self.warning = text
        log.warning("%s", text)


def parsed(content: bytes) -> tuple[Entries, bool, str]:
    """The entries in a file's content, whether they are held, and what is wrong with it; "" if nothing is."""
    try:
        found = json.loads(content.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        return (), False, f"it is not JSON ({error})"
    listed = found.get("entries") if isinstance(found, dict) else None
    if not isinstance(listed, list):
        return (), False, "it does not hold a list of entries"
    entries: list[Entry] = []
    for each in listed[:MOST]:
        if (entry := from_json(each)) is not None:
            taken = {other.id for other in entries}
            entries.append(replace(entry, id=secrets.token_hex(4)) if entry.id in taken else entry)
    wrong = len(listed) - len(entries)
    return tuple(entries), found.get("held") is True, f"{wrong} of its {len(listed)} entries cannot be used" if wrong else ""


def replaced(entries: Entries, new: Entry) -> list[Entry]:
    """The entries, with `new` instead of the one that has its id."""
    return [new if each.id == new.id else each for each in entries]


def _refuse_twice(entries: Entries, entry: Entry) -> None:
    """ConfigError for a run that is in the queue already, or for a second new embedding of the same name."""
    for number, each in enumerate(entries, 1):
        if each.state == "failed":
            continue
        if each.is_like(entry):
            message = f"This run of {entry.name!r} is in the queue already: number {number}."
            raise ConfigError(message, TWICE)
        if each.creates and entry.creates and each.name.casefold() == entry.name.casefold():
            message = f"Number {number} in the queue creates an embedding {each.name!r}: choose another name, or remove it."
            raise ConfigError(message, TWICE)


def _movable(entries: Entries, entry_id: str) -> Entry:
    """The entry with this id; ConfigError if there is none or it is being trained."""
    found = next((each for each in entries if each.id == entry_id), None)
    if found is None:
        message = "This run is not in the queue any more."
        raise ConfigError(message)
    if found.state == "running":
        message = f"{found.name!r} is being trained: stop it first."
        raise ConfigError(message)
    return found
