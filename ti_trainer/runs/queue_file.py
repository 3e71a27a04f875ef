"""The file of the queue: the runs that wait to be started. It is in the folder of runs and survives a restart.

Several processes may change it in turn. An entry has the settings that a run's settings.json has: name, images, train. It
may be a run to continue, or one that learns from a prompt and whose embedding is created when its turn comes.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from threading import RLock
from typing import Any, Literal

from ti_trainer.config.training import TrainConfig
from ti_trainer.errors import ConfigError
from ti_trainer.files import free_path, write_bytes
from ti_trainer.host import Host
from ti_trainer.runs import locks
from ti_trainer.runs.distill import Distillation
from ti_trainer.runs.run_folder import Run
from ti_trainer.runs.session import Session
from ti_trainer.runs.suggestions import is_trained
from ti_trainer.wording import counted

log = logging.getLogger(__name__)
FILE = "queue.json"
MOST = 100  # entries
LARGEST_BYTES = 16 * 2**20
State = Literal["waiting", "running", "failed"]
STATES: tuple[State, ...] = ("waiting", "running", "failed")
Entries = tuple["Entry", ...]
CUT_OFF = (
    "The program ended while this was trained. If the run had begun, it is in the list of runs and can be continued there; "
    "trying again starts a new one."
)


@dataclass(frozen=True)
class Entry:
    """A run that was queued. `message` says why it failed.

    `resume` is the id of the run to continue, and `overwrite` that of `Session`. With `prompt`, the fields of a
    `Distillation`, the embedding is created when it is started: `num_vectors` and `overwrite` are then those of its `begin`.
    """

    id: str
    name: str
    images: str
    train: Mapping[str, Any]
    state: State = "waiting"
    message: str = ""
    resume: str = ""
    overwrite: bool = False
    prompt: Mapping[str, Any] = field(default_factory=dict)
    num_vectors: int = 0

    @classmethod
    def of(cls, session: Session) -> Entry:
        """A new entry for the run that a session describes."""
        resume = session.resume.id if session.resume else ""
        values = session.name, str(session.images.resolve()), session.config.to_dict()
        return cls(secrets.token_hex(4), *values, resume=resume, overwrite=session.overwrite)

    @classmethod
    def of_prompt(cls, wanted: Distillation, config: TrainConfig, num_vectors: int | None, *, overwrite: bool) -> Entry:
        """A new entry for an embedding that is to learn from a prompt."""
        values = wanted.name, wanted.name, config.to_dict()
        return cls(secrets.token_hex(4), *values, overwrite=overwrite, prompt=asdict(wanted), num_vectors=num_vectors or 0)

    def start(self, host: Host, start: Callable[[Session], object]) -> None:
        """Call `start` with the run; creates the embedding of a prompt. ConfigError for what cannot be used."""
        config = TrainConfig.from_dict(self.train)
        if self.prompt:
            again = not host.is_public and not is_trained(host, self.name)  # an earlier attempt may have created it
            overwrite = self.overwrite or again
            self._distillation().begin(host, config, self.num_vectors or None, start, overwrite=overwrite)
        else:
            resume = Run.find(host.log_dir, self.resume) if self.resume else None
            start(Session(host, self.name, Path(self.images), config, resume, overwrite=self.overwrite))

    def _distillation(self) -> Distillation:
        try:
            return Distillation(**{**self.prompt, "contexts": tuple(self.prompt.get("contexts", ()))})
        except TypeError as error:
            message = f"The prompt of {self.name!r} in the queue cannot be used ({error}): add it again."
            raise ConfigError(message) from error

    @property
    def max_steps(self) -> int | None:
        """The step to train to; None if the entry does not say."""
        steps = self.train.get("max_steps")
        return steps if isinstance(steps, int) else None


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
        """Add an entry; its place among those that wait. ConfigError if there are too many."""

        def appended(entries: Entries) -> Entries:
            if len(entries) >= MOST:
                message = f"There are {len(entries)} runs in the queue, expected at most {MOST}: remove some first."
                raise ConfigError(message)
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

    def try_again(self, entry_id: str) -> None:
        """Have an entry that failed wait again, in its place; ConfigError if it is gone or is being trained."""
        self.recover()
        self.change(lambda entries: replaced(entries, replace(_movable(entries, entry_id), state="waiting", message="")))

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
        content = {"entries": [_written(each) for each in entries], **({"held": True} if held else {})}
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
        if (entry := _entry(each)) is not None:
            taken = {other.id for other in entries}
            entries.append(replace(entry, id=secrets.token_hex(4)) if entry.id in taken else entry)
    wrong = len(listed) - len(entries)
    return tuple(entries), found.get("held") is True, f"{wrong} of its {len(listed)} entries cannot be used" if wrong else ""


def replaced(entries: Entries, new: Entry) -> list[Entry]:
    """The entries, with `new` instead of the one that has its id."""
    return [new if each.id == new.id else each for each in entries]


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


def _written(entry: Entry) -> dict[str, Any]:
    """What the file says of an entry: `_OPTIONAL` only where they are set."""
    return {name: value for name, value in asdict(entry).items() if value or name not in _OPTIONAL}


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
    optional = {name: values.get(name, kind()) for name, kind in _OPTIONAL.items()}
    if not all(isinstance(optional[name], kind) for name, kind in _OPTIONAL.items()):
        return None
    return Entry(str(texts[0]), str(texts[1]), str(texts[2]), train, state, message, **optional)


_OPTIONAL: Mapping[str, type] = {"resume": str, "overwrite": bool, "prompt": dict, "num_vectors": int}
