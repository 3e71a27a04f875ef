"""The one preprocessing that is going on, in a thread of its own; whoever wants to see how far it is asks for a snapshot."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace
from threading import Event, Lock, Thread
from typing import Any, Literal

from ti_trainer.errors import ConfigError, TITrainerError
from ti_trainer.preprocess.runner import Preprocessing, Summary

log = logging.getLogger(__name__)
Status = Literal["idle", "working", "stopping", "stopped", "done", "failed"]


@dataclass(frozen=True)
class Snapshot:
    """How far it is, in photos."""

    status: Status = "idle"
    done: int = 0
    total: int = 0
    before: int = 0  # of those, done before it began
    message: str = ""
    work: Preprocessing | None = None
    summary: Summary | None = None
    begun_at: float = 0.0

    @property
    def active(self) -> bool:
        """Whether it goes on."""
        return self.status in ("working", "stopping")

    @property
    def per_second(self) -> float:
        """Photos, since it began."""
        made, took = self.done - self.before, time.monotonic() - self.begun_at
        return made / took if made and self.active else 0.0

    @property
    def seconds_left(self) -> float | None:
        """At the present speed; None while that is unknown."""
        return (self.total - self.done) / self.per_second if self.per_second else None


@dataclass
class Job:
    """At most one at a time. Every method may be called from any thread."""

    _now: Snapshot = field(default_factory=Snapshot)
    _stop: Event = field(default_factory=Event)
    _thread: Thread | None = None
    _lock: Lock = field(default_factory=Lock)

    def start(self, work: Preprocessing) -> None:
        """Begin; TITrainerError if that cannot be, or another one is going on."""
        work.check()
        with self._lock:
            if self._now.active:
                message = "Images are being preprocessed: wait for the end, or interrupt it first."
                raise ConfigError(message)
            stop = Event()
            thread = Thread(target=self._work, args=(work, stop), name="ti-trainer-preprocess", daemon=True)
            thread.start()  # what it tells waits for the lock; if it cannot start, all is as before
            self._stop, self._thread = stop, thread
            self._now = Snapshot("working", work=work, begun_at=time.monotonic())

    def stop(self) -> None:
        """End after the photos at hand."""
        with self._lock:
            if self._now.active:
                self._now = replace(self._now, status="stopping")
                self._stop.set()

    def snapshot(self) -> Snapshot:
        """How far it is now."""
        return self._now

    def wait(self, seconds: float | None = None) -> None:
        """Until it is over."""
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
        except Exception as error:  # whatever it is, the page must say so and the next one be possible
            log.exception("Preprocessing failed:")
            self._update(status="failed", message=f"Unexpected {type(error).__name__}: {error}. The log says where.")
        else:
            self._update(status="stopped" if summary.stopped else "done", summary=summary)

    def _update(self, **changes: Any) -> None:
        with self._lock:
            self._now = replace(self._now, **changes)
