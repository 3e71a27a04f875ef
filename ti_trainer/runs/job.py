"""The one training that is going on, in a thread of its own: any number of pages may watch it, none needs to stay open.

Knows nothing of pages: whoever wants to see how far it is asks for a snapshot.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Lock, Thread
from typing import Literal

from torch import Tensor
from tqdm import tqdm

from ti_trainer.errors import BusyError, ConfigError, StoppedError, TITrainerError
from ti_trainer.runs.callbacks import Callback
from ti_trainer.runs.finalize import why
from ti_trainer.runs.run_folder import Run
from ti_trainer.runs.session import Controls, Result, Session
from ti_trainer.training.events import Compiling, Event, Finished, StepDone
from ti_trainer.training.trainer import Trainer
from ti_trainer.wording import counted

log = logging.getLogger(__name__)
Status = Literal["idle", "waiting", "loading", "training", "pausing", "stopping", "paused", "stopped", "done", "failed"]
ACTIVE: tuple[Status, ...] = ("waiting", "loading", "training", "pausing", "stopping")
READ_EVERY_S = 0.5  # between looks at the losses: each look makes the CPU wait for the GPU
SPEED_OVER = 50  # steps
NO_BAR = partial(tqdm, disable=True)
INTERRUPTED = "Stopped by the WebUI's Interrupt, which stops whatever is running, including this training."


@dataclass(frozen=True)
class Snapshot:
    """How far the run is. `loss` and `validation` are by step; `rates` the learning rates of `loss`."""

    status: Status = "idle"
    name: str = ""
    message: str = ""
    step: int = 0
    max_steps: int = 0
    epoch: int = 0
    loaded: tuple[int, int] = (0, 0)
    steps_per_second: float = 0.0
    prompt: str = ""
    computing: str = ""  # how the run fits into memory, and whether it is compiled, where there was something to choose
    compiling: bool = False  # the step at hand takes a minute or more for it
    loss: Sequence[tuple[int, float]] = ()
    rates: Sequence[tuple[int, float]] = ()
    validation: Sequence[tuple[int, float]] = ()
    previews: Sequence[tuple[int, Path]] = ()
    run: Run | None = None
    result: Result | None = None
    asked: tuple[str, ...] = ()  # of "copy" and "preview", what was asked for and is not done yet

    @property
    def active(self) -> bool:
        """Whether it keeps the model busy, or is about to."""
        return self.status in ACTIVE

    @property
    def seconds_left(self) -> float | None:
        """At the present speed; None while that is unknown."""
        return (self.max_steps - self.step) / self.steps_per_second if self.steps_per_second else None


@dataclass
class Job:
    """At most one run at a time. Every method may be called from any thread. `bar` makes the console's progress bar."""

    _now: Snapshot = field(default_factory=Snapshot)
    _session: Session | None = None
    _controls: Controls = field(default_factory=Controls)
    _thread: Thread | None = None
    _lock: Lock = field(default_factory=Lock)
    bar: Callable[..., tqdm] = NO_BAR

    def start(self, session: Session) -> None:
        """Begin, or go on with an earlier run; TITrainerError if that cannot be, or another run is going on."""
        if self._now.active:
            self._refuse()
        session.check()
        begun, last_step = session.resume.step if session.resume else 0, session.config.max_steps
        with self._lock:
            if self._now.active:
                self._refuse()
            controls = Controls()
            thread = Thread(target=self._work, args=(session, controls), name="ti-trainer", daemon=True)
            thread.start()  # what it tells waits for the lock; if it cannot start, all is as before
            self._session, self._controls, self._thread = session, controls, thread
            self._now = Snapshot("waiting", session.name, step=begun, max_steps=last_step, run=session.resume)

    def stop(self) -> None:
        """End after the step at hand and keep what was learned."""
        self._end("stopping")

    def pause(self) -> None:
        """As stop, but meant to go on: the model is free meanwhile, and `resume` goes on exactly."""
        self._end("pausing")

    def resume(self) -> None:
        """Go on with the run that was paused or stopped; ConfigError if there is none."""
        with self._lock:
            session, run = self._session, self._now.run
        if session is None or run is None:
            message = "There is no paused run: start one, or continue one on the Runs page."
            raise ConfigError(message)
        self.start(replace(session, resume=run))

    def save_copy(self) -> None:
        """Keep a copy of the embedding after the step at hand."""
        self._controls.copy.set()

    def draw_preview(self) -> None:
        """Draw a preview after the step at hand."""
        self._controls.preview.set()

    def snapshot(self) -> Snapshot:
        """How far it is now, what other threads write included."""
        controls, now = self._controls, self._now
        asked = (("copy", controls.copy), ("preview", controls.preview)) if now.active else ()
        now = replace(now, asked=tuple(name for name, flag in asked if flag.is_set()))
        if now.run is None or not now.run.path.is_dir():
            return now
        return replace(now, previews=now.run.previews(), validation=now.run.validation_losses())

    def wait(self, seconds: float | None = None) -> None:
        """Until it is over."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _refuse(self) -> None:
        message = f"A training of {self._now.name!r} is going on: stop it first, or wait for its end."
        raise BusyError(message)

    def _end(self, status: Status) -> None:
        with self._lock:
            if self._now.active:
                self._now = replace(self._now, status=status)
                self._controls.stop.set()

    def _work(self, session: Session, controls: Controls) -> None:
        def loading(done: int, total: int) -> None:
            self.tell(status="loading", loaded=(done, total))

        def callbacks(trainer: Trainer, run: Run) -> list[Callback]:
            name, first, last = trainer.embedding_name, trainer.step, trainer.last_step
            images = counted(len(trainer.dataset.items), "image")
            log.info("Training %s on %s, steps %d to %d. The run is written to %s.", name, images, first + 1, last, run.path)
            bar = opened.enter_context(self.bar(total=last, initial=first, desc=f"Training {name}", unit="step"))
            return [_Watcher(self, trainer, run, bar)]

        def say(text: str) -> None:
            self.tell(computing=f"{self._now.computing} {text}".lstrip())

        def interrupted() -> str:
            return "" if controls.stop.is_set() else INTERRUPTED

        try:
            with ExitStack() as opened:
                result = replace(session, warn=self._warn, say=say).train(callbacks, controls, loading)
        except StoppedError as error:
            message = _lines(interrupted(), str(error))
            log.info("Training %s: %s", session.name, " ".join(message.split()))
            with self._lock:
                self._now = replace(self._now, status="stopped", message=message)
        except (TITrainerError, OSError) as error:
            self._fail(why(error), session.name)
        except Exception as error:  # whatever it is, the page must say so and the next run be possible
            log.exception("Training failed:")
            self._fail(f"Unexpected {type(error).__name__}: {error}. The log says where.", session.name)
        else:
            with self._lock:
                ended = "paused" if self._now.status == "pausing" else "stopped"
                status = "done" if result.reason == "done" else ended
                message = _lines(self._now.message, "" if status == "done" else interrupted())
                changes = {"status": status, "message": message, "result": result, "run": result.run}
                self._now = replace(self._now, **changes, step=result.embedding.step)
            where = f"{status} after step {result.embedding.step}. The embedding is {result.embedding_file}."
            log.info("Training %s: %s", session.name, where)

    def _warn(self, text: str) -> None:
        log.warning("%s", text)
        said = self._now.message.splitlines()
        if text not in said:
            self.tell(message=_lines(self._now.message, text))

    def _fail(self, message: str, name: str) -> None:
        log.error("Training %s: failed. %s", name, message)
        with self._lock:
            self._now = replace(self._now, status="failed", message=message)

    def tell(self, **changes: object) -> None:
        """Change the snapshot; a wish to stop that came meanwhile stays visible."""
        with self._lock:
            if self._now.status in ("stopping", "pausing"):
                changes.pop("status", None)
            self._now = replace(self._now, **changes)


def _lines(*texts: str) -> str:
    return "\n".join(filter(None, texts))


class _Watcher:
    """Turns events into snapshots, and moves the bar. Losses are read from the device some at a time."""

    def __init__(self, job: Job, trainer: Trainer, run: Run, bar: tqdm) -> None:
        self._job, self._bar = job, bar
        earlier = [row for row in run.losses() if row["step"] <= trainer.step]
        self._loss = [(int(row["step"]), row["loss"]) for row in earlier]
        self._rates = [(int(row["step"]), row["learn_rate"]) for row in earlier]
        self._unread: list[tuple[int, Tensor]] = []
        self._times: deque[tuple[float, int]] = deque(maxlen=SPEED_OVER)
        self._read_at = 0.0
        self._last: StepDone | None = None
        self._compiling = False
        job.tell(status="training", step=trainer.step, max_steps=trainer.last_step, run=run)
        job.tell(loss=tuple(self._loss), rates=tuple(self._rates))

    def __call__(self, event: Event) -> None:
        now = time.monotonic()
        if isinstance(event, Compiling):
            self._compiling = True
            self._job.tell(compiling=True)
            return
        if self._compiling:
            self._compiling, self._read_at = False, 0.0
            self._times.clear()  # what it took says nothing of the speed
            self._job.tell(compiling=False)
        if isinstance(event, StepDone):
            self._unread.append((event.step, event.loss))
            self._times.append((now, event.step))
            self._rates.append((event.step, event.learning_rate))
            self._last = event
            if now - self._read_at < READ_EVERY_S:
                return
        if self._last is not None:
            self._job.tell(epoch=self._last.epoch, prompt=self._last.prompts[-1])
        self._read_at = now
        self._loss += [(step, float(loss)) for step, loss in self._unread]
        self._unread.clear()
        self._job.tell(step=event.step, loss=tuple(self._loss), rates=tuple(self._rates), steps_per_second=self._speed())
        if self._last is not None:
            latest = [loss for _, loss in self._loss[-SPEED_OVER:]]  # single ones are of single images and timesteps
            said = f"loss {sum(latest) / len(latest):.4f}, learning rate {self._last.learning_rate:g}"
            self._bar.set_postfix_str(said, refresh=False)
            self._bar.update(event.step - self._bar.n)
        if isinstance(event, Finished):
            self._bar.close()  # what is written now may make the host say something, on a line of its own

    def _speed(self) -> float:
        if not self._times:  # stopped before the first step
            return 0.0
        (first, first_step), (last, last_step) = self._times[0], self._times[-1]
        return (last_step - first_step) / (last - first) if last > first else 0.0
