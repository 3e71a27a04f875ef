"""How far everything is, for a route that costs next to nothing: pages ask there whether there is news, scripts what it is.

What is told is made anew at most a few times a second, however many ask. A call through gradio costs ten times as much.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from ti_trainer.ui.api import status
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels.train_progress import mark, shown

ROUTE = "/ti_trainer/status"  # as javascript/ti_trainer.js has it
EVERY_S = 0.25


@dataclass
class Board:
    """What is told of a page's jobs; from any thread."""

    page: Page
    _told: dict[str, Any] = field(default_factory=dict)
    _at: float = float("-inf")
    _lock: Lock = field(default_factory=Lock)

    def told(self) -> dict[str, Any]:
        """The status as the API gives it, and `mark`, which is another one whenever a page has something new to show."""
        with self._lock:
            if time.monotonic() - self._at > EVERY_S:
                now = self.page.job.snapshot()
                self._told = {"mark": mark(shown(self.page, now)), **status(self.page, now)}
                self._at = time.monotonic()
            return self._told

    def mark(self) -> dict[str, str]:
        """The mark alone: it says nothing to those who have no password."""
        return {"mark": self.told()["mark"]}
