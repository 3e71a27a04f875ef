"""Run one piece of work at a time in a background thread; the page polls a snapshot of its progress."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from threading import Event, Lock, Thread
from typing import Any, Generic, Protocol, TypeVar

from ti_trainer.errors import TITrainerError, explained

log = logging.getLogger(__name__)


class Progress(Protocol):
    """A frozen dataclass with the state of the work; it also has the fields `status` and `message`."""

    @property
    def active(self) -> bool:
        """Whether the work is running."""
        ...


S = TypeVar("S", bound=Progress)


class BackgroundJob(Generic[S]):
    """The thread, its snapshot and the request to stop. Thread-safe."""

    def __init__(self, idle: S) -> None:
        """`idle`: the snapshot before the first start."""
        self._now = idle
        self._stop = Event()
        self._thread: Thread | None = None
        self._lock = Lock()

    def begin(self, now: S, work: Callable[[Event], dict[str, Any]], name: str, refuse: Callable[[], None]) -> None:
        """Start a thread with this first snapshot, unless `refuse` raises.

        `work` gets the event that asks it to stop, and returns the fields of its last snapshot. Its errors are logged, and
        become the status "failed" with a message.
        """
        with self._lock:
            refuse()
            stop = Event()
            thread = Thread(target=self._work, args=(work, stop, name), name=f"ti-trainer-{name}", daemon=True)
            thread.start()  # its first update waits for the lock; if it cannot start, nothing changes
            self._stop, self._thread, self._now = stop, thread, now

    def stop(self) -> None:
        """Stop after what is in progress."""
        with self._lock:
            if self._now.active:
                self._now = replace(self._now, status="stopping")  # type: ignore[type-var]
                self._stop.set()

    def snapshot(self) -> S:
        """The current progress."""
        return self._now

    def wait(self, seconds: float | None = None) -> None:
        """Wait until it ends."""
        if self._thread is not None:
            self._thread.join(seconds)

    def update(self, **changes: Any) -> None:
        """Change fields of the snapshot."""
        with self._lock:
            self._now = replace(self._now, **changes)  # type: ignore[type-var]

    def _work(self, work: Callable[[Event], dict[str, Any]], stop: Event, name: str) -> None:
        try:
            ended = work(stop)
        except (TITrainerError, OSError) as error:
            ended = {"status": "failed", "message": explained(error)}
            log.error("%s: %s", name, ended["message"])  # noqa: TRY400
        except Exception as error:  # shown on the page; the next start stays possible
            log.exception("%s failed:", name)
            ended = {"status": "failed", "message": f"Unexpected {type(error).__name__}: {error}. The log says where."}
        self.update(**ended)
