"""The queue: runs that are started one after the other, each when the job is free. No page has to stay open for that.

The queue starts runs only after `start`, or after a run was added during another one. It goes on when a run is done or has
failed, and waits when the user has paused or stopped one.
"""

from __future__ import annotations

import logging
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from threading import RLock, Thread
from typing import Literal

from ti_trainer.errors import BusyError, ConfigError, TITrainerError, explained
from ti_trainer.host import Host
from ti_trainer.runs import locks
from ti_trainer.runs.builders import load_embeddings
from ti_trainer.runs.checks import check_images, check_options
from ti_trainer.runs.job import Job, Snapshot
from ti_trainer.runs.queue_file import FILE, MOST, Entries, Entry, QueueFile, State
from ti_trainer.runs.quick_job import QuickJob
from ti_trainer.runs.session import Session
from ti_trainer.training.trials import check_steps

log = logging.getLogger(__name__)
POLL_S = 0.5  # between looks at the job
CUT_OFF = (
    "The program ended while this was trained. If the run had begun, it is in the list of runs and can be continued there; "
    "trying again starts a new one."
)
Held = Literal["", "paused", "stopped", "by the user"]


@dataclass(frozen=True)
class QueueSnapshot:
    """The queue at a moment. `going`: its next run is started by itself; `held` says why not."""

    entries: Entries = ()
    going: bool = False
    held: Held = ""
    message: str = ""

    @property
    def waiting(self) -> int:
        """The number of runs that wait to be started."""
        return sum(each.state == "waiting" for each in self.entries)


@dataclass
class Queue:
    """Starts the runs of the queue. Every method may be called from any thread."""

    _host: Host | None = None
    _job: Job = field(default_factory=Job)
    _quick: QuickJob = field(default_factory=QuickJob)
    _file: QueueFile | None = None
    _going: bool = False
    _forced: bool = False  # the user wants the next run although the one before was paused or stopped
    _held: Held = ""
    _message: str = ""
    _thread: Thread | None = None
    _lock: RLock = field(default_factory=RLock)

    def attach(self, host: Host, job: Job, quick: QuickJob) -> None:
        """Say what the runs are started with. Entries whose program ended while they were trained become failed ones."""
        with self._lock:
            self._host, self._job, self._quick = host, job, quick
        self._recover()

    @property
    def host(self) -> Host:
        """What the runs are started with; ConfigError before `attach`."""
        if self._host is None:
            message = "The queue has no host to train with."
            raise ConfigError(message)
        return self._host

    @property
    def file(self) -> QueueFile:
        """The file of the entries; another one once the folder of runs is another."""
        with self._lock:
            path = self.host.log_dir / FILE
            if self._file is None or self._file.path != path:
                self._file = QueueFile(path)
            return self._file

    def snapshot(self) -> QueueSnapshot:
        """The current state."""
        file = self.file
        entries = file.read()
        return QueueSnapshot(entries, self._going, self._held, file.warning or self._message)

    def add(self, session: Session) -> int:
        """Add a run, which starts by itself if something is trained now; its place among those that wait.

        Raises now, as far as that is possible without a model, what starting it would raise.
        """
        self._check(session)
        entry = Entry.of(session)

        def appended(entries: Entries) -> Entries:
            if len(entries) >= MOST:
                message = f"There are {len(entries)} runs in the queue, expected at most {MOST}: remove some first."
                raise ConfigError(message)
            return (*entries, entry)

        entries = self.file.change(appended)
        if self._is_busy():
            self._go()
        return sum(each.state == "waiting" for each in entries)

    def start(self) -> None:
        """Start the next run as soon as the job is free, and go on with the others; ConfigError if none waits."""
        if not any(each.state == "waiting" for each in self.file.read()):
            message = "No run waits in the queue: add one first."
            raise ConfigError(message)
        self._go(forced=True)

    def hold(self) -> None:
        """Start no further run; the one that is trained now is not affected."""
        with self._lock:
            self._going, self._held = False, "by the user"

    def close(self) -> None:
        """Before the program ends: start nothing more, and wait until the outcome of the current run is written."""
        self.hold()
        if (thread := self._thread) is not None:
            thread.join(10)

    def remove(self, entry_id: str) -> None:
        """Remove an entry; ConfigError if it is gone or is being trained."""

        def removed(entries: Entries) -> list[Entry]:
            found = _movable(entries, entry_id)
            return [each for each in entries if each is not found]

        self.file.change(removed)

    def move(self, entry_id: str, by: int) -> None:
        """Move an entry down by as many places, up for a negative number; ConfigError if it is gone or is being trained."""

        def moved(entries: Entries) -> list[Entry]:
            found = _movable(entries, entry_id)
            rest = [each for each in entries if each is not found]
            first = sum(each.state == "running" for each in entries)  # nothing goes before what is trained now
            rest.insert(min(max(entries.index(found) + by, first), len(rest)), found)
            return rest

        self.file.change(moved)

    def try_again(self, entry_id: str) -> None:
        """Have an entry that failed wait again, in its place; ConfigError if it is gone or is being trained."""
        self.file.change(
            lambda entries: _replaced(entries, replace(_movable(entries, entry_id), state="waiting", message=""))
        )

    def _check(self, session: Session) -> None:
        host = session.host
        check_images(host, session.images)
        check_options(host, session.name, session.config)
        loaded = load_embeddings(host.embeddings_dir, session.config, session.name)
        check_steps(session.name, loaded[0][0].step, session.config)

    def _is_busy(self) -> bool:
        return self._job.active or self._job.is_blocked or self._quick.preparing

    def _go(self, *, forced: bool = False) -> None:
        with self._lock:
            self._going, self._forced, self._held, self._message = True, forced or self._forced, "", ""
            if self._thread is None:
                self._thread = Thread(target=self._work, name="ti-trainer-queue", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        """Start runs until none is left or the queue is held."""
        while True:
            with self._lock:
                entry = self._due()
                if not self._going:
                    self._thread = None
                    return
            if entry is None:
                time.sleep(POLL_S)
            else:
                self._run(entry)

    def _due(self) -> Entry | None:
        """The entry to start now, if it is time; ends `_going` if none is left or the user has stopped a run."""
        if not self._going:
            return None
        if self._is_busy():
            self._forced, self._held = False, ""
            return None
        if not self._forced and self._job.status == "paused":
            self._held = "paused"
            return None
        if not self._forced and self._job.status == "stopped":
            self._going, self._held = False, "stopped"
            return None
        entry = next((each for each in self.file.read() if each.state == "waiting"), None)
        if entry is None:
            self._going = False
        return entry

    def _run(self, entry: Entry) -> None:
        """Train an entry and note how it ended."""
        try:
            with self._running():
                self._train(entry)
        except (TITrainerError, OSError) as error:  # another process runs the queue, or its file cannot be written
            log.error("The queue waits: %s", explained(error))  # noqa: TRY400
            with self._lock:
                self._going, self._message = False, explained(error)

    def _running(self) -> AbstractContextManager[None]:
        """The lock of the process that runs the queue; ConfigError if another one does."""
        return locks.held(locks.of_file(self.file.path.with_suffix(".running")), "A run of the queue", log.info)

    def _train(self, entry: Entry) -> None:
        if not self._mark(entry, "running"):
            return  # removed just now
        ended = SimpleQueue[Snapshot]()
        try:
            self._job.start(entry.session(self.host), ended.put)
        except BusyError:  # somebody was faster
            self._mark(entry, "waiting")
        except (TITrainerError, OSError) as error:
            self._fail(entry, explained(error))
        except Exception as error:  # the next run must be possible
            log.exception("A run of the queue could not be started:")
            self._fail(entry, f"Unexpected {type(error).__name__}: {error}. See the log for details.")
        else:
            with self._lock:
                self._forced = False
            self._settle(entry, ended.get())

    def _settle(self, entry: Entry, ended: Snapshot) -> None:
        """Once a run has ended: it is in the list of runs then, unless it failed or was stopped before its first step."""
        if ended.status == "failed":
            self._fail(entry, ended.message)
        elif ended.run is None:
            self._mark(entry, "waiting")
        else:
            self.file.change(lambda entries: [each for each in entries if each.id != entry.id])

    def _fail(self, entry: Entry, message: str) -> None:
        log.error("The run of %s in the queue: %s", entry.name, message)
        self._mark(entry, "failed", message)

    def _mark(self, entry: Entry, state: State, message: str = "") -> bool:
        """Change an entry's state; False if it is not in the queue any more."""
        new = replace(entry, state=state, message=message)
        entries = self.file.change(lambda entries: _replaced(entries, new))
        return any(each.id == entry.id for each in entries)

    def _recover(self) -> None:
        try:
            if all(each.state != "running" for each in self.file.read()):
                return
            with self._running():
                self.file.change(
                    lambda entries: [
                        replace(each, state="failed", message=CUT_OFF) if each.state == "running" else each
                        for each in entries
                    ]
                )
        except (ConfigError, OSError) as error:  # another process trains it, or the file cannot be written
            log.info("The queue: %s", error)


def _movable(entries: Entries, entry_id: str) -> Entry:
    """The entry with this id; ConfigError if there is none or it is being trained."""
    found = next((each for each in entries if each.id == entry_id), None)
    if found is None:
        message = "This run is not in the queue any more."
        raise ConfigError(message)
    if found.state == "running":
        message = f"{found.name!r} is being trained: stop it first."
        raise BusyError(message)
    return found


def _replaced(entries: Entries, new: Entry) -> list[Entry]:
    return [new if each.id == new.id else each for each in entries]
