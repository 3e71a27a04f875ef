"""Run a comparison in a background thread; the page polls a snapshot of its progress."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, Literal

from ti_trainer.errors import BusyError, TITrainerError
from ti_trainer.runs.finalize import describe
from ti_trainer.runs.job import Job
from ti_trainer.workbench.compare import Comparison
from ti_trainer.workbench.comparison_run import Outcome, Progress, run

log = logging.getLogger(__name__)
Status = Literal["idle", "comparing", "stopping", "stopped", "done", "failed"]


@dataclass(frozen=True)
class Snapshot:
    """Progress: `done` of `total`, `before` of them from earlier; `what` is being made, as in `Progress`."""

    status: Status = "idle"
    what: str = "image"
    done: int = 0
    total: int = 0
    before: int = 0
    message: str = ""
    work: Comparison | None = None
    folder: Path | None = None
    outcome: Outcome | None = None
    begun_at: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def active(self) -> bool:
        """Whether it is running."""
        return self.status in ("comparing", "stopping")

    @property
    def seconds_left(self) -> float | None:
        """Estimated; None while the speed is unknown."""
        made = self.done - self.before
        if not made or not self.active or self.what != "image":
            return None
        return (self.total - self.done) * (time.monotonic() - self.begun_at) / made


@dataclass
class CompareJob:
    """Runs one comparison at a time. Thread-safe."""

    per_image_s: float | None = None  # of the last comparison
    _now: Snapshot = field(default_factory=Snapshot)
    _stop: Event = field(default_factory=Event)
    _thread: Thread | None = None
    _lock: Lock = field(default_factory=Lock)

    def start(self, work: Comparison, training: Job) -> None:
        """Start; TITrainerError if it is not possible, BusyError during a training or another comparison."""
        work.check(self.per_image_s)
        with self._lock:
            self.refuse_if_active()
            if (now := training.snapshot()).active:
                message = f"{now.name!r} is being trained: wait until it is finished, or stop it."
                raise BusyError(message)
            stop = Event()
            thread = Thread(target=self._work, args=(work, stop), name="ti-trainer-compare", daemon=True)
            thread.start()  # its first update waits for the lock; if it cannot start, nothing changes
            self._stop, self._thread = stop, thread
            self._now = Snapshot("comparing", total=work.size, work=work)

    def stop(self) -> None:
        """Stop after the image in progress."""
        with self._lock:
            if self._now.active:
                self._now = replace(self._now, status="stopping")
                self._stop.set()

    def snapshot(self) -> Snapshot:
        """The current progress."""
        return self._now

    def wait(self, seconds: float | None = None) -> None:
        """Wait until it ends."""
        if self._thread is not None:
            self._thread.join(seconds)

    def refuse_if_active(self) -> None:
        """Raise BusyError while a comparison is running."""
        now = self._now
        if now.active and now.work is not None:
            message = f"Copies of {now.work.title!r} are being compared: wait until that is finished, or interrupt it."
            raise BusyError(message)

    def _work(self, work: Comparison, stop: Event) -> None:
        def report(progress: Progress) -> None:
            now = self._now
            changes: dict[str, Any] = {"what": progress.what, "done": progress.done, "total": progress.total}
            if now.folder is None:
                changes |= {"before": progress.done, "begun_at": time.monotonic()}
            self._update(**changes, folder=progress.folder, notes=progress.notes)

        try:
            outcome = run(work, report, stop.is_set)
        except (TITrainerError, OSError) as error:
            log.error("Comparing %s: %s", work.title, error)  # noqa: TRY400
            self._update(status="failed", message=describe(error))
        except Exception as error:  # shown on the page; the next comparison stays possible
            log.exception("Comparing failed:")
            self._update(status="failed", message=f"Unexpected {type(error).__name__}: {error}. The log says where.")
        else:
            self.per_image_s = outcome.per_image_s or self.per_image_s
            log.info("Comparing %s: %s The images are in %s.", work.title, outcome.summary, outcome.folder)
            status = "stopped" if outcome.stopped else "done"
            self._update(status=status, outcome=outcome, done=outcome.done, total=outcome.total, notes=outcome.notes)

    def _update(self, **changes: Any) -> None:
        with self._lock:
            if self._now.status == "stopping" and changes.get("status") == "comparing":
                del changes["status"]
            self._now = replace(self._now, **changes)
