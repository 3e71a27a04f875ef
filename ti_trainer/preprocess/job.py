"""Run preprocessing in a background thread; the page polls a snapshot of its progress."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace
from threading import Event, Lock, Thread
from typing import Any, Literal

from ti_trainer.errors import ConfigError, TITrainerError
from ti_trainer.preprocess.runner import Preprocessing
from ti_trainer.preprocess.summary import Summary

log = logging.getLogger(__name__)
Status = Literal["idle", "working", "stopping", "stopped", "done", "failed"]


@dataclass(frozen=True)
class Snapshot:
    """Progress, in source images."""

    status: Status = "idle"
    done: int = 0
    total: int = 0
    before: int = 0  # of `done`, those of earlier runs
    message: str = ""
    work: Preprocessing | None = None
    summary: Summary | None = None
    begun_at: float = 0.0

    @property
    def active(self) -> bool:
        """Whether it is running."""
        return self.status in ("working", "stopping")

    @property
    def per_second(self) -> float:
        """Source images per second."""
        made, took = self.done - self.before, time.monotonic() - self.begun_at
        return made / took if made and self.active else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Estimated; None while the speed is unknown."""
        return (self.total - self.done) / self.per_second if self.per_second else None


@dataclass
class Job:
    """Runs one preprocessing at a time. Thread-safe."""

    _now: Snapshot = field(default_factory=Snapshot)
    _stop: Event = field(default_factory=Event)
    _thread: Thread | None = None
    _lock: Lock = field(default_factory=Lock)

    def start(self, work: Preprocessing) -> None:
        """Start; TITrainerError if it is not possible, or another one is running."""
        work.check()
        with self._lock:
            if self._now.active:
                message = "Preprocessing is already running. Wait until it is done, or interrupt it."
                raise ConfigError(message)
            stop = Event()
            thread = Thread(target=self._work, args=(work, stop), name="ti-trainer-preprocess", daemon=True)
            thread.start()  # its first update waits for the lock; if it cannot start, nothing changes
            self._stop, self._thread = stop, thread
            self._now = Snapshot("working", work=work, begun_at=time.monotonic())

    def stop(self) -> None:
        """Stop after the images in progress."""
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

    def _work(self, work: Preprocessing, stop: Event) -> None:
        first: list[int] = []

        def progress(done: int, total: int) -> None:
            first.append(done) if not first else None
            self._update(done=done, total=total, before=first[0])

        try:
            summary = work.run(progress, stop.is_set)
        except (TITrainerError, OSError) as error:
            log.error("%s", error)  # noqa: TRY400
            self._update(status="failed", message=str(error))
        except Exception as error:  # shown on the page; the next run stays possible
            log.exception("Preprocessing failed:")
            self._update(status="failed", message=f"Unexpected {type(error).__name__}: {error}. The log says where.")
        else:
            self._update(status="stopped" if summary.stopped else "done", summary=summary)

    def _update(self, **changes: Any) -> None:
        with self._lock:
            self._now = replace(self._now, **changes)
