"""The status of both jobs for a cheap HTTP route: pages ask it whether anything is new, and scripts how far a run is.

It is computed at most four times a second, however many clients ask. A call through gradio costs ten times as much.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from ti_trainer.ui.api import run_status
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels.train_progress import fingerprint, parts_of

ROUTE = "/ti_trainer/status"  # also in javascript/ti_trainer.js
MAX_AGE_S = 0.25


@dataclass
class StatusCache:
    """The status of a page's jobs; safe to use from any thread."""

    page: Page
    _status: dict[str, Any] = field(default_factory=dict)
    _computed_at: float = float("-inf")
    _lock: Lock = field(default_factory=Lock)

    def status(self) -> dict[str, Any]:
        """The status as the API returns it, and `version`, which changes whenever a page has something new to show."""
        with self._lock:
            if time.monotonic() - self._computed_at > MAX_AGE_S:
                now = self.page.job.snapshot()
                self._status = {"version": fingerprint(parts_of(self.page, now)), **run_status(self.page, now)}
                self._computed_at = time.monotonic()
            return self._status

    def version(self) -> dict[str, str]:
        """The version alone, which reveals nothing to clients without a password."""
        return {"version": self.status()["version"]}
