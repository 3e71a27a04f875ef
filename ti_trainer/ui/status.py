"""The status of both jobs for a cheap HTTP route: pages ask it whether anything is new, and scripts how far a run is.

It is computed at most four times a second, however many clients ask. A call through gradio costs ten times as much, so pages
are told to ask less often where many are open.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from ti_trainer.ui.api import run_status
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels.train_progress import fingerprint, parts_of

ROUTE = "/ti_trainer/status"  # also in javascript/ti_trainer.js
MAX_AGE_S = 0.25
ASKED_PER_S, OVER_S = 2.0, 10.0  # by all pages together during a run; the time over which requests are counted
LONGEST_S = 10.0  # between two requests of a page


@dataclass
class StatusCache:
    """The status of a page's jobs; safe to use from any thread."""

    page: Page
    _status: dict[str, Any] = field(default_factory=dict)
    _computed_at: float = float("-inf")
    _asked: deque[tuple[float, float]] = field(default_factory=deque)  # when, and the interval at that time
    _every_s: float = 1.0
    _lock: Lock = field(default_factory=Lock)

    def status(self) -> dict[str, Any]:
        """The status as the API returns it, `version`, which changes with what a page shows, and `every`: see `_counted`."""
        with self._lock:
            every_s = self._counted()
            if time.monotonic() - self._computed_at > MAX_AGE_S:
                now = self.page.job.snapshot()
                self._status = {"version": fingerprint(parts_of(self.page, now)), **run_status(self.page, now)}
                self._computed_at = time.monotonic()
            return {**self._status, "every": every_s}

    def _counted(self) -> float:
        """Count a request; the seconds between two requests of a page during a run, which grow with the number of pages."""
        now = time.monotonic()
        self._asked.append((now, self._every_s))
        while self._asked[0][0] < now - OVER_S:
            self._asked.popleft()
        pages = sum(every_s for _, every_s in self._asked) / OVER_S
        self._every_s = round(min(max(1.0, pages / ASKED_PER_S), LONGEST_S), 1)
        return self._every_s

    def version(self) -> dict[str, Any]:
        """The version and the interval alone, which reveal nothing to clients without a password."""
        now = self.status()
        return {"version": now["version"], "every": now["every"]}
