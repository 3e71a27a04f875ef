"""Run a comparison in a background thread; the page polls a snapshot of its progress."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, Literal

from ti_trainer.background import BackgroundJob
from ti_trainer.errors import BusyError
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


class CompareJob(BackgroundJob[Snapshot]):
    """Runs one comparison at a time. Thread-safe."""

    def __init__(self) -> None:
        """Nothing runs yet."""
        super().__init__(Snapshot())
        self.per_image_s: float | None = None  # of the last comparison

    def start(self, work: Comparison, training: Job) -> None:
        """Start; TITrainerError if it is not possible, BusyError during a training or another comparison."""
        work.check(self.per_image_s)

        def refuse() -> None:
            self.refuse_if_active()
            if (now := training.snapshot()).active:
                message = f"{now.name!r} is being trained: wait until it is finished, or stop it."
                raise BusyError(message)

        self.begin(Snapshot("comparing", total=work.size, work=work), partial(self._compare, work), "compare", refuse)

    def refuse_if_active(self) -> None:
        """Raise BusyError while a comparison is running."""
        now = self.snapshot()
        if now.active and now.work is not None:
            message = f"Copies of {now.work.title!r} are being compared: wait until that is finished, or interrupt it."
            raise BusyError(message)

    def _compare(self, work: Comparison, stop: Event) -> dict[str, Any]:
        def report(progress: Progress) -> None:
            changes: dict[str, Any] = {"what": progress.what, "done": progress.done, "total": progress.total}
            if self.snapshot().folder is None:
                changes |= {"before": progress.done, "begun_at": time.monotonic()}
            self.update(**changes, folder=progress.folder, notes=progress.notes)

        outcome = run(work, report, stop.is_set)
        self.per_image_s = outcome.per_image_s or self.per_image_s
        log.info("Comparing %s: %s The images are in %s.", work.title, outcome.summary, outcome.folder)
        status = "stopped" if outcome.stopped else "done"
        return {
            "status": status,
            "outcome": outcome,
            "done": outcome.done,
            "total": outcome.total,
            "notes": outcome.notes,
        }
