"""The status of the jobs for a cheap HTTP route: pages ask it for what has changed, and scripts how far a run is.

What changes with every step is sent as HTML and as pieces of the loss curve, which javascript/ti_trainer_live.js shows. Only
for other changes do pages call gradio, which costs ten times as much. The status is computed at most four times a second,
however many clients ask, and pages are told to ask less often where many are open.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from starlette.routing import Route

from ti_trainer.runs.job import Snapshot
from ti_trainer.runs.live_curve import Series
from ti_trainer.ui.api import run_status
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels.train_progress import LIVE, fingerprint, hashed, parts_of, series_of

ROUTE = "/ti_trainer/status"  # also in javascript/ti_trainer.js
MAX_AGE_S = 0.25
ASKED_PER_S, OVER_S = 4.0, 10.0  # by all pages together during a run; the time over which requests are counted
LONGEST_S = 10.0  # between two requests of a page


@dataclass
class StatusCache:
    """The status of a page's jobs; safe to use from any thread."""

    page: Page
    _status: dict[str, Any] = field(default_factory=dict)
    _computed_at: float = float("-inf")
    _series: tuple[Series, bool] | None = None
    _html: dict[str, tuple[int, str, str]] = field(default_factory=dict)  # the change that it is of, its hash, the HTML
    _changes: int = 0
    _id: str = field(default_factory=lambda: secrets.token_hex(4))  # another one after a restart
    _asked: deque[tuple[float, float]] = field(default_factory=deque)  # when, and the interval at that time
    _every_s: float = 1.0
    _lock: Lock = field(default_factory=Lock)

    def status(self, since: str | None = None) -> dict[str, Any]:
        """The status as the API returns it, `version`, which changes with what a page shows, and `every`: see `_counted`.

        `since` is the `at` of an earlier answer, "" without one. With it, the answer has the HTML that has changed since
        then by the name of its part, and `curve`, see `LiveCurve.since`.
        """
        with self._lock:
            every_s = self._counted()
            if not self.is_fresh:
                self._compute(self.page.job.snapshot())
            return {**self._status, "every": every_s, **({} if since is None else self._changed(since))}

    @property
    def is_fresh(self) -> bool:
        """Whether `status` has nothing to compute."""
        return time.monotonic() - self._computed_at <= MAX_AGE_S

    def version(self) -> dict[str, Any]:
        """The version and the interval alone, which reveal nothing to clients without a password."""
        now = self.status()
        return {"version": now["version"], "every": now["every"]}

    def _compute(self, now: Snapshot) -> None:
        parts = parts_of(self.page, now)
        self._status = {"version": fingerprint(parts), **run_status(self.page, now)}
        self._series = series_of(now), now.active
        for name in LIVE & parts.keys():
            depends_on, make = parts[name]
            if (key := hashed(depends_on)) != self._html.get(name, (0, ""))[1]:
                self._changes += 1
                self._html[name] = self._changes, key, make()
        self._computed_at = time.monotonic()

    def _changed(self, since: str) -> dict[str, Any]:
        """What has changed, and `at`."""
        known, changes, position = f"{since}--".split("-")[:3]
        seen = int(changes) if known == self._id and changes.isdecimal() else 0
        html = {name: html for name, (change, _, html) in self._html.items() if change > seen}
        curve: dict[str, Any] = {}
        if self._series:
            series, active = self._series
            position, curve = self.page.curve.since(series, position * (known == self._id), active=active)
        return {"at": f"{self._id}-{self._changes}-{position}", "html": html, "curve": curve}

    def _counted(self) -> float:
        """Count a request; the seconds between two requests of a page during a run, which grow with the number of pages."""
        now = time.monotonic()
        self._asked.append((now, self._every_s))
        while self._asked[0][0] < now - OVER_S:
            self._asked.popleft()
        pages = sum(every_s for _, every_s in self._asked) / OVER_S
        self._every_s = round(min(max(1.0, pages / ASKED_PER_S), LONGEST_S), 1)
        return self._every_s


def route(cache: StatusCache, knows: Callable[[Request], bool] = lambda request: True) -> Route:
    """The route, for a list of routes. Clients that `knows` does not accept are told `StatusCache.version` only."""

    async def answer(request: Request) -> JSONResponse:
        since = request.query_params.get("since")

        def told() -> dict[str, Any]:
            return cache.status(since) if accepted else cache.version()

        accepted = knows(request)
        # A thread costs more than an answer that is there already; computing one may read from a slow disk.
        return JSONResponse(told() if cache.is_fresh else await run_in_threadpool(told))

    return Route(ROUTE, answer, methods=["GET"], include_in_schema=False)
