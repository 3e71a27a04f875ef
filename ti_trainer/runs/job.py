"""The job: runs one session at a time in a thread of its own.

Any number of pages may follow it through snapshots; none has to stay open.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Lock, Thread
from typing import Any, Literal

from tqdm import tqdm

from ti_trainer.errors import BusyError, ConfigError, StoppedError, TITrainerError, explained
from ti_trainer.runs.callbacks import Callback
from ti_trainer.runs.run_folder import Run
from ti_trainer.runs.session import Controls, Result, Session
from ti_trainer.runs.step_progress import StepProgress
from ti_trainer.training.trainer import Trainer
from ti_trainer.wording import counted

log = logging.getLogger(__name__)
Status = Literal["idle", "waiting", "loading", "training", "pausing", "stopping", "paused", "stopped", "done", "failed"]
ACTIVE: tuple[Status, ...] = ("waiting", "loading", "training", "pausing", "stopping")
NO_BAR = partial(tqdm, disable=True)
INTERRUPTED = "Stopped by the WebUI's Interrupt, which stops whatever is running, including this training."


@dataclass(frozen=True)
class Snapshot:
    """The state of a job. `loss` and `validation` are by step; `rates` are the learning rates of `loss`."""

    status: Status = "idle"
    name: str = ""
    message: str = ""
    step: int = 0
    max_steps: int = 0
    epoch: int = 0
    generated: tuple[int, int] = (0, 0)  # images for a run that learns from a prompt, and their total
    loaded: tuple[int, int] = (0, 0)
    steps_per_second: float = 0.0
    best_step: int | None = None  # with the lowest validation loss so far
    prompt: str = ""
    computing: str = ""  # how memory is saved and whether the network is compiled, where there was a choice
    compiling: bool = False  # the current step compiles the network, which takes a minute or more
    fitting: bool = False  # the vectors are fitted to a prompt before the first step
    loss: Sequence[tuple[int, float]] = ()
    rates: Sequence[tuple[int, float]] = ()
    validation: Sequence[tuple[int, float]] = ()
    previews: Sequence[tuple[int, Path]] = ()
    run: Run | None = None
    result: Result | None = None
    requested: tuple[str, ...] = ()  # "copy", "preview": requested and not done yet

    @property
    def active(self) -> bool:
        """Whether the job uses the model or is about to."""
        return self.status in ACTIVE

    @property
    def before_after(self) -> tuple[tuple[int, Path], ...]:
        """The first preview and the last one up to the step of the result; empty if there are no two."""
        until = self.result.embedding.step if self.result else self.step
        previews = [each for each in self.previews if each[0] <= until]
        return (previews[0], previews[-1]) if len(previews) > 1 else ()

    @property
    def seconds_left(self) -> float | None:
        """Seconds left at the current speed; None while the speed is unknown."""
        return (self.max_steps - self.step) / self.steps_per_second if self.steps_per_second else None


@dataclass
class Job:
    """Runs at most one session at a time. Every method may be called from any thread.

    `bar` makes the console's progress bar. `guard` raises BusyError while something else uses the model for long.
    """

    _now: Snapshot = field(default_factory=Snapshot)
    _session: Session | None = None
    _controls: Controls = field(default_factory=Controls)
    _thread: Thread | None = None
    _lock: Lock = field(default_factory=Lock)
    bar: Callable[..., tqdm] = NO_BAR
    guard: Callable[[], None] = lambda: None

    def start(self, session: Session, on_end: Callable[[Snapshot], object] = lambda ended: None) -> None:
        """Start a session; TITrainerError if it cannot start, BusyError if another one is running.

        `on_end` is called with its last snapshot from the session's thread, once the job is free for another session.
        """
        if self._now.active:
            self._refuse()
        self.guard()
        session.check()
        step, last_step = session.resume.step if session.resume else 0, session.config.max_steps
        with self._lock:
            if self._now.active:
                self._refuse()
            controls = Controls()
            thread = Thread(target=self._work, args=(session, controls, on_end), name="ti-trainer", daemon=True)
            thread.start()  # its updates wait for the lock; if it cannot start, nothing has changed
            self._session, self._controls, self._thread = session, controls, thread
            self._now = Snapshot("waiting", session.name, step=step, max_steps=last_step, run=session.resume)

    @property
    def is_blocked(self) -> bool:
        """Whether `guard` refuses to start a run."""
        try:
            self.guard()
        except BusyError:
            return True
        return False

    def stop(self) -> None:
        """Stop after the current step and save the embedding."""
        self._end("stopping")

    def pause(self) -> None:
        """Stop like `stop`, with the status "paused". The model is free until `resume`, which is exact."""
        self._end("pausing")

    def resume(self) -> None:
        """Resume the run that was paused or stopped; ConfigError if there is none."""
        with self._lock:
            session, run = self._session, self._now.run
        if session is None or run is None:
            message = "There is no paused run: start one, or continue one on the Runs page."
            raise ConfigError(message)
        if not run.path.is_dir():
            message = f"The run {run.id} is no longer in {run.path}. If it is in the bin, restore it on the Runs tab first."
            raise ConfigError(message)
        self.start(replace(session, resume=run))

    def save_copy(self) -> None:
        """Save a copy of the embedding after the current step."""
        self._controls.copy.set()

    def draw_preview(self) -> None:
        """Generate a preview after the current step."""
        self._controls.preview.set()

    @property
    def session(self) -> Session | None:
        """The session that is running or ran last."""
        return self._session

    @property
    def name(self) -> str:
        """The embedding that is being trained or was trained last."""
        return self._now.name

    @property
    def status(self) -> Status:
        """The current status, without reading files."""
        return self._now.status

    @property
    def active(self) -> bool:
        """Whether a session uses the model or is about to."""
        return self._now.active

    def snapshot(self) -> Snapshot:
        """The current state, with the files that were written until now."""
        controls, now = self._controls, self._now
        requests = (("copy", controls.copy), ("preview", controls.preview)) if now.active else ()
        now = replace(now, requested=tuple(name for name, flag in requests if flag.is_set()))
        if now.run is None or not now.run.path.is_dir():
            return now
        return replace(now, previews=now.run.previews(), validation=now.run.validation_losses())

    def wait(self, seconds: float | None = None) -> None:
        """Wait until the session has ended, or for this many seconds."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _refuse(self) -> None:
        message = f"{self._now.name!r} is being trained: stop it first, or wait until it ends."
        raise BusyError(message)

    def _end(self, status: Status) -> None:
        with self._lock:
            if self._now.active:
                self._now = replace(self._now, status=status)
                self._controls.stop.set()

    def _work(self, session: Session, controls: Controls, on_end: Callable[[Snapshot], object]) -> None:
        ended = replace(self._now, status="failed")
        try:
            ended = self._train(session, controls)
        finally:
            on_end(ended)

    def _train(self, session: Session, controls: Controls) -> Snapshot:
        """Run a session to its end, whatever that is; the last snapshot."""

        def count(what: str, done: int, total: int) -> None:
            self.update(status="loading", **{what: (done, total)})

        def callbacks(trainer: Trainer, run: Run) -> list[Callback]:
            name, first, last = trainer.embedding_name, trainer.step, trainer.last_step
            images = counted(len(trainer.dataset.items), "image")
            log.info("Training %s on %s, steps %d to %d. The run is written to %s.", name, images, first + 1, last, run.path)
            bar = opened.enter_context(self.bar(total=last, initial=first, desc=f"Training {name}", unit="step"))
            return [StepProgress(self.update, trainer, run, bar)]

        def say(text: str) -> None:
            self.update(computing=f"{self._now.computing} {text}".lstrip())

        def interrupted() -> str:
            return "" if controls.stop.is_set() else INTERRUPTED

        try:
            with ExitStack() as opened:
                counts = partial(count, "loaded"), partial(count, "generated")
                result = replace(session, warn=self._warn, say=say).train(callbacks, controls, *counts)
        except StoppedError as error:
            message = _lines(interrupted(), str(error))
            log.info("Training %s: %s", session.name, " ".join(message.split()))
            return self._finish(status="stopped", message=message)
        except (TITrainerError, OSError) as error:
            return self._fail(explained(error), session.name)
        except Exception as error:  # the page must show any error, and the next run must be possible
            log.exception("Training failed:")
            return self._fail(f"Unexpected {type(error).__name__}: {error}. See the log for details.", session.name)
        with self._lock:
            status: Status = "paused" if self._now.status == "pausing" else "stopped"
            if result.reason == "done":
                status = "done"
            message = _lines(self._now.message, "" if status == "done" else interrupted())
            self._now = ended = replace(
                self._now, status=status, message=message, result=result, run=result.run, step=result.last_step
            )
        found = "" if not result.verdict else f"{result.verdict} "
        where = f"{status} after step {result.last_step}. {found}The embedding is {result.embedding_file}."
        log.info("Training %s: %s", session.name, where)
        return ended

    def _warn(self, text: str) -> None:
        log.warning("%s", text)
        if text not in self._now.message.splitlines():
            self.update(message=_lines(self._now.message, text))

    def _fail(self, message: str, name: str) -> Snapshot:
        log.error("Training %s: failed. %s", name, message)
        return self._finish(status="failed", message=message)

    def _finish(self, **changes: Any) -> Snapshot:
        with self._lock:
            self._now = replace(self._now, **changes)
            return self._now

    def update(self, **changes: Any) -> None:
        """Change fields of the snapshot; the status stays "stopping" or "pausing" once requested."""
        with self._lock:
            if self._now.status in ("stopping", "pausing"):
                changes.pop("status", None)
            self._now = replace(self._now, **changes)


def _lines(*texts: str) -> str:
    return "\n".join(filter(None, texts))
