"""Follow a run's steps: losses, learning rates and speed, for a job's snapshot and the console's progress bar."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from torch import Tensor
from tqdm import tqdm

from ti_trainer.runs.run_folder import Run
from ti_trainer.training.events import Compiling, Event, Finished, Fitting, StepDone
from ti_trainer.training.trainer import Trainer

READ_EVERY_S = 0.5  # between reads of the losses: each read makes the CPU wait for the GPU
SPEED_OVER = 50  # steps over which speed and loss are averaged


class StepProgress:
    """A callback that reports to a snapshot and to the progress bar. Losses are read from the device in groups."""

    def __init__(self, update: Callable[..., None], trainer: Trainer, run: Run, bar: tqdm) -> None:
        """`update` changes fields of the snapshot."""
        self._update, self._trainer, self._bar = update, trainer, bar
        earlier = [row for row in run.losses() if row["step"] <= trainer.step]
        self._loss = [(int(row["step"]), row["loss"]) for row in earlier]
        self._rates = [(int(row["step"]), row["learn_rate"]) for row in earlier]
        self._unread: list[tuple[int, Tensor]] = []
        self._times: deque[tuple[float, int]] = deque(maxlen=SPEED_OVER)
        self._read_at = 0.0
        self._last: StepDone | None = None
        self._is_delayed = False
        update(status="training", step=trainer.step, max_steps=trainer.last_step, run=run)
        update(loss=tuple(self._loss), rates=tuple(self._rates))

    def __call__(self, event: Event) -> None:
        """A step was done, the network is being compiled, the vectors are being fitted, or the run has ended."""
        now = time.monotonic()
        if isinstance(event, Compiling | Fitting):
            self._is_delayed = True
            self._update(compiling=isinstance(event, Compiling), fitting=isinstance(event, Fitting))
            return
        if self._is_delayed:
            self._is_delayed, self._read_at = False, 0.0
            self._times.clear()  # neither counts for the speed
            self._update(compiling=False, fitting=False)
        if isinstance(event, StepDone):
            self._unread.append((event.step, event.loss))
            self._times.append((now, event.step))
            self._rates.append((event.step, event.learning_rate))
            self._last = event
            if now - self._read_at < READ_EVERY_S:
                return
        if self._last is not None:
            self._update(epoch=self._last.epoch, prompt=self._last.prompts[-1])
        self._read_at = now
        self._loss += [(step, float(loss)) for step, loss in self._unread]
        self._unread.clear()
        self._update(step=event.step, loss=tuple(self._loss), rates=tuple(self._rates), steps_per_second=self._speed())
        if self._trainer.best_so_far is not None:
            self._update(best_step=self._trainer.best_so_far.step)
        if self._last is not None:
            latest = [loss for _, loss in self._loss[-SPEED_OVER:]]  # a single loss depends on its image and timestep
            text = f"loss {sum(latest) / len(latest):.4f}, learning rate {self._last.learning_rate:.3g}"
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(event.step - self._bar.n)
        if isinstance(event, Finished):
            self._bar.close()  # later messages get lines of their own

    def _speed(self) -> float:
        if not self._times:  # stopped before the first step
            return 0.0
        (first, first_step), (last, last_step) = self._times[0], self._times[-1]
        return (last_step - first_step) / (last - first) if last > first else 0.0
