"""Run preprocessing in a background thread; the page polls a snapshot of its progress."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from threading import Event
from typing import Any, Literal

from ti_trainer.background import BackgroundJob
from ti_trainer.errors import ConfigError
from ti_trainer.preprocess.runner import Preprocessing
from ti_trainer.preprocess.summary import Summary

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


class Job(BackgroundJob[Snapshot]):
    """Runs one preprocessing at a time. Thread-safe."""

    def __init__(self) -> None:
        """Nothing runs yet."""
        super().__init__(Snapshot())

    def start(self, work: Preprocessing) -> None:
        """Start; TITrainerError if it is not possible, or another one is running."""
        work.check()
        now = Snapshot("working", work=work, begun_at=time.monotonic())
        self.begin(now, partial(self._preprocess, work), "preprocess", self._refuse_if_active)

    def _refuse_if_active(self) -> None:
        if self.snapshot().active:
            message = "Preprocessing is already running. Wait until it is done, or interrupt it."
            raise ConfigError(message)

    def _preprocess(self, work: Preprocessing, stop: Event) -> dict[str, Any]:
        first: list[int] = []

        def progress(done: int, total: int) -> None:
            first.append(done) if not first else None
            self.update(done=done, total=total, before=first[0])

        summary = work.run(progress, stop.is_set)
        return {"status": "stopped" if summary.stopped else "done", "summary": summary}
