"""The file of the queue: the runs that wait to be started. It is in the folder of runs and survives a restart.

Several processes may change it in turn. An entry has the settings that a run's settings.json has: name, images, train.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from threading import RLock
from typing import Any, Literal

from ti_trainer.config.training import TrainConfig
from ti_trainer.errors import ConfigError
from ti_trainer.files import free_path, write_bytes
from ti_trainer.host import Host
from ti_trainer.runs import locks
from ti_trainer.runs.session import Session
from ti_trainer.wording import counted

log = logging.getLogger(__name__)
FILE = "queue.json"
MOST = 100  # entries
LARGEST_BYTES = 16 * 2**20
State = Literal["waiting", "running", "failed"]
STATES: tuple[State, ...] = ("waiting", "running", "failed")
Entries = tuple["Entry", ...]


@dataclass(frozen=True)
class Entry:
    """A run that was queued. `message` says why it failed."""

    id: str
    name: str
    images: str
    train: Mapping[str, Any]
    state: State = "waiting"
    message: str = ""

    @classmethod
    def of(cls, session: Session) -> Entry:
        """A new entry for the run that a session describes."""
        return cls(secrets.token_hex(4), session.name, str(session.images.resolve()), session.config.to_dict())

    def session(self, host: Host) -> Session:
        """The run; ConfigError for options that this version does not know."""
        return Session(host, self.name, Path(self.images), TrainConfig.from_dict(self.train))

    @property
    def max_steps(self) -> int | None:
        """The step to train to; None if the entry does not say."""
        steps = self.train.get("max_steps")
        return steps if isinstance(steps, int) else None


@dataclass
class QueueFile:
    """The entries in their order. Thread-safe. `warning` says what was wrong with the file when it was read."""

    path: Path
    warning: str = ""
    _entries: Entries = ()
    _seen: tuple[int, ...] | None = None
    _readable: bool = True
    _lock: RLock = field(default_factory=RLock)

    def read(self) -> Entries:
        """The entries. A damaged file is set aside, and those of its entries that can be read are kept."""
        with self._lock:
            if (seen := self._signature()) != self._seen:
                self._seen = seen
                self._entries = self._load()
            return self._entries

    def change(self, change: Callable[[Entries], Sequence[Entry]]) -> Entries:
        """Replace the entries by what `change` returns; OSError or ConfigError if the file cannot be read or written."""
        with self._lock, locks.briefly(locks.of_file(self.path), "The queue"):
            self.warning = ""
            if not self._readable:
                self._seen = None  # it may have been repaired
            before = self.read()
            if not self._readable:
                raise ConfigError(self.warning)
            after = tuple(change(before))
            if after != before:
                self._write(after)
            return after

    def _write(self, entries: Entries) -> None:
        content = {"entries": [asdict(each) for each in entries]}
        write_bytes(self.path, json.dumps(content, indent=2, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        self._entries, self._seen = entries, self._signature()

    def _signature(self) -> tuple[int, ...] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _load(self) -> Entries:
        self._readable = True
        try:
            content = self._content()
        except FileNotFoundError:
            return ()
        except OSError as error:
            self._readable = False
            reason = error.strerror or error
            return self._warned(f"The queue {self.path} cannot be read ({reason}): remove or repair this file.")
        entries, wrong = parsed(content)
        if wrong:
            self._set_aside(entries, wrong)
        return entries

    def _content(self) -> bytes:
        """The file's content, cut off where it is too large to be a queue; OSError if it cannot be read."""
        with self.path.open("rb") as file:
            return file.read(LARGEST_BYTES)

    def _set_aside(self, entries: Entries, wrong: str) -> None:
        kept = f"{counted(len(entries), 'run')} could be read and kept" if entries else "The queue is empty now"
        aside = free_path(self.path.with_name(f"{self.path.name}.damaged"), "-")
        try:
            self.path.replace(aside)
            self._write(entries)
        except OSError as error:
            self._warned(f"The queue {self.path} is damaged ({wrong}) and cannot be replaced: {error.strerror}.")
        else:
            self._warned(f"The queue {self.path} was damaged: {wrong}. {kept}; the damaged file is {aside}.")

    def _warned(self, text: str) -> Entries:
        self.warning = text
        log.warning("%s", text)
        return ()


def parsed(content: bytes) -> tuple[Entries, str]:
    """The entries in a file's content, and what is wrong with it; "" if nothing is."""
    try:
        found = json.loads(content.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        return (), f"it is not JSON ({error})"
    listed = found.get("entries") if isinstance(found, dict) else None
    if not isinstance(listed, list):
        return (), "it does not hold a list of entries"
    entries: list[Entry] = []
    for each in listed[:MOST]:
        if (entry := _entry(each)) is not None:
            taken = {other.id for other in entries}
            entries.append(replace(entry, id=secrets.token_hex(4)) if entry.id in taken else entry)
    wrong = len(listed) - len(entries)
    return tuple(entries), f"{wrong} of its {len(listed)} entries cannot be used" if wrong else ""


def _entry(values: object) -> Entry | None:
    """The entry that a file describes; None if it is not one. Its options are checked when it is started."""
    if not isinstance(values, dict):
        return None
    texts = [values.get(name) for name in ("id", "name", "images")]
    train, state, message = values.get("train"), values.get("state", "waiting"), values.get("message", "")
    if not all(isinstance(each, str) and each for each in texts) or not isinstance(train, dict):
        return None
    if state not in STATES or not isinstance(message, str) or not str(texts[0]).isalnum():
        return None
    return Entry(str(texts[0]), str(texts[1]), str(texts[2]), train, state, message)
