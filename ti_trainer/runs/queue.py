"""The queue: runs that are started one after the other, each when the job is free. No page has to stay open for that.

The queue starts runs only after `start`, or after a run was added during another one. It goes on when a run is done or has
failed, and waits when the user has paused or stopped one, or has held the queue in this or another program. An entry is
trained with the model that it is meant for, or not at all.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from threading import RLock, Thread
from typing import Literal

from ti_trainer.errors import BusyError, ConfigError, TITrainerError, explained
from ti_trainer.host import Host, ModelReference
from ti_trainer.preprocess import job as preprocess
from ti_trainer.runs import queue_start
from ti_trainer.runs.builders import load_embeddings
from ti_trainer.runs.checks import check_images, check_options, check_resumed_model
from ti_trainer.runs.integrity import check_unchanged
from ti_trainer.runs.job import Job, Snapshot
from ti_trainer.runs.queue_entry import Entries, Entry, State
from ti_trainer.runs.queue_file import FILE, TWICE, QueueFile, replaced
from ti_trainer.runs.quick import QuickTraining
from ti_trainer.runs.quick_job import QuickJob
from ti_trainer.runs.session import Session
from ti_trainer.training.trials import check_steps

log = logging.getLogger(__name__)
POLL_S = 0.5  # between looks at the job
Held = Literal["", "paused", "stopped", "by the user"]


@dataclass(frozen=True)
class QueueSnapshot:
    """The queue at a moment. `going`: its next run is started by itself; `held` says why not, and `held_by` by which run."""

    entries: Entries = ()
    going: bool = False
    held: Held = ""
    held_by: str = ""
    message: str = ""
    elsewhere: str = ""  # the embedding that another program trains

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
    _preprocessing: preprocess.Job = field(default_factory=preprocess.Job)
    _load_model: Callable[[ModelReference | None], object] | None = None
    _file: QueueFile | None = None
    _going: bool = False
    _forced: bool = False  # the user wants the next run although the one before was paused or stopped
    _held: Held = ""
    _held_by: str = ""
    _message: str = ""
    _thread: Thread | None = None
    _lock: RLock = field(default_factory=RLock)

    def attach(
        self,
        host: Host,
        job: Job,
        quick: QuickJob,
        preprocessing: preprocess.Job,
        load_model: Callable[[ModelReference | None], object] | None = None,
    ) -> None:
        """Say what the runs are started with. Entries whose program ended while they were trained become failed ones.

        `load_model` has the host use an entry's model; without it, an entry for another model than the host's fails.
        """
        with self._lock:
            self._host, self._job, self._quick, self._preprocessing = host, job, quick, preprocessing
            self._load_model = load_model
        self.file.recover()

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
        held: Held = self._held or ("by the user" if file.held else "")
        running = [each.name for each in entries if each.state == "running" and self._thread is None]
        message, elsewhere = file.warning or self._message, "".join(running[:1])
        return QueueSnapshot(entries, self._going, held, self._held_by, message, elsewhere)

    @property
    def new_names(self) -> frozenset[str]:
        """The names, in small letters, of embeddings that the queue creates."""
        return frozenset(each.name.casefold() for each in self.file.read() if each.creates and each.state != "failed")

    def add(self, run: Session | QuickTraining | Entry) -> int:
        """Add a run; its place among those that wait. During another run it starts by itself, unless the queue is held.

        Raises now, as far as that is possible without a model, what starting it would raise.
        """
        model = self.host.chosen_model()
        if isinstance(run, Session):
            self._check(run, model)
            run = Entry.of(run)
        elif isinstance(run, QuickTraining):
            self._check_quick(run)
            run = Entry.of_quick(run)
        place = self.file.append(replace(run, model=model))
        if self._is_busy() and not self.file.held:
            self._go()
        return place

    def start(self) -> None:
        """Start the next run as soon as the job is free, and go on with the others; ConfigError if none waits."""
        self.file.recover()
        if not any(each.state == "waiting" for each in self.file.read()):
            message = "No run waits in the queue: add one first."
            raise ConfigError(message)
        self.file.change(held=False)
        self._go(forced=True)

    def use_chosen_model(self, entry_id: str) -> None:
        """Have an entry that was refused for its model wait again, for the host's model instead."""
        self.file.try_again(entry_id, model=self.host.chosen_model())

    def hold(self) -> None:
        """Start no further run, in any program; the one that is trained now is not affected."""
        self.file.change(held=True)
        self.rest()

    def rest(self) -> None:
        """Start no further run in this program."""
        with self._lock:
            self._going, self._held, self._held_by = False, "by the user", ""

    def close(self) -> None:
        """Before the program ends: start nothing more, stop what is trained, and wait until its outcome is written."""
        self.rest()
        while (thread := self._thread) is not None and thread.is_alive():
            self._quick.stop()  # again and again: it may just be about to start
            self._job.stop()
            thread.join(POLL_S)

    def _check(self, session: Session, model: ModelReference) -> None:
        host = session.host
        if session.resume is not None:
            check_resumed_model(session.resume, model.name)
        check_images(host, session.images)
        check_options(host, session.name, session.config)
        loaded = load_embeddings(host.embeddings_dir, session.config, session.name)
        step = session.resume.step if session.resume else loaded[0][0].step
        check_steps(session.name, step, session.config)
        if session.resume is not None and not session.overwrite:
            check_unchanged(session.resume, session.resume.load_state()[0], loaded)

    def _check_quick(self, work: QuickTraining) -> None:
        now = self._quick.snapshot()
        if now.active and now.name.casefold() == work.name.casefold():
            message = f"A quick training of {now.name!r} is running: choose another name, or wait until it has ended."
            raise ConfigError(message, TWICE)
        work.check()

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
        if self._going and self.file.held:
            self._going, self._held = False, "by the user"
        if not self._going:
            return None
        if self._is_busy():
            self._forced, self._held = False, ""
            return None
        if not self._forced and self._job.status == "paused":
            self._hold("paused", self._job.name)
            return None
        if not self._forced and self._job.status == "stopped":
            self._going = False
            self._hold("stopped", self._job.name)
            return None
        entry = next((each for each in self.file.read() if each.state == "waiting"), None)
        if entry is None:
            self._going = self._forced = False
        elif entry.quick and self._preprocessing.snapshot().active:
            return None
        return entry

    def _hold(self, why: Held, name: str) -> None:
        self._held, self._held_by = why, name

    def _run(self, entry: Entry) -> None:
        """Train an entry and note how it ended."""
        try:
            with self.file.running():
                self._train(entry)
        except (TITrainerError, OSError) as error:  # another process runs the queue, or its file cannot be written
            log.error("The queue waits: %s", explained(error))  # noqa: TRY400
            with self._lock:
                self._going, self._message = False, explained(error)

    def _train(self, entry: Entry) -> None:
        if not self._claim(entry):
            return
        ended = SimpleQueue[Snapshot]()
        try:
            if self._load_model is not None:
                self._load_model(entry.model)
            queue_start.start(
                entry,
                self.host,
                lambda session: self._job.start(session, ended.put),
                lambda work: self._quick.start(work, self._job, self._preprocessing, ended.put),
            )
        except BusyError:  # somebody was faster
            self._mark(entry, "waiting")
            time.sleep(POLL_S)
        except (TITrainerError, OSError) as error:
            self._fail(entry, explained(error), getattr(error, "option", ""))
        except Exception as error:  # the next run must be possible
            log.exception("A run of the queue could not be started:")
            self._fail(entry, f"Unexpected {type(error).__name__}: {error}. See the log for details.")
        else:
            self._settle(entry, ended.get())

    def _settle(self, entry: Entry, ended: Snapshot) -> None:
        """Once a run has ended: it is in the list of runs then, unless it failed or was stopped before its first step."""
        with self._lock:  # what ended before the job had it leaves the job as it was: paused, for instance
            self._forced = self._forced and ended.status == "failed" and ended.run is None
        if ended.status == "failed":
            self._fail(entry, ended.message)
        elif ended.run is None:
            if ended.status == "stopped":
                with self._lock:
                    self._going = False
                    self._hold("stopped", entry.name)
            self._mark(entry, "waiting")
        else:
            self.file.change(lambda entries: [each for each in entries if each.id != entry.id])

    def _fail(self, entry: Entry, message: str, option: str = "") -> None:
        log.error("The run of %s in the queue: %s", entry.name, message)
        self._mark(entry, "failed", message, option)

    def _claim(self, entry: Entry) -> bool:
        """Have an entry that waits be trained here; False if it was removed, or trained elsewhere, just now."""
        new = replace(entry, state="running")
        return new in self.file.change(lambda entries: replaced(entries, new) if entry in entries else entries)

    def _mark(self, entry: Entry, state: State, message: str = "", option: str = "") -> None:
        new = replace(entry, state=state, message=message, option=option)
        self.file.change(lambda entries: replaced(entries, new))
