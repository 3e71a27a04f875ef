"""Progress bars of a training in a terminal."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tqdm import tqdm

from ti_trainer.commands.terminal import moves
from ti_trainer.training.events import Compiling, Event, Fitting, StepDone

if TYPE_CHECKING:
    from torch import Tensor

    from ti_trainer.runs.callbacks import Callback
    from ti_trainer.runs.run_folder import Run
    from ti_trainer.training.trainer import Trainer

READ_EVERY_S = 0.5  # reading losses makes the CPU wait for the GPU


@dataclass
class Progress:
    """A bar for reading images, then one for steps, with the smoothed loss."""

    bar: tqdm | None = None
    _shown: str = ""  # what the bar shows: with TQDM_DISABLE a bar has no description
    _losses: list[float | Tensor] = field(default_factory=list)
    _smooth: float | None = None
    _read_at: float = 0.0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def generating(self, done: int, total: int) -> None:
        """Image `done` of `total` was generated."""
        self._images("Generating images", done, total)

    def loading(self, done: int, total: int) -> None:
        """Image `done` of `total` was read."""
        self._images("Reading images", done, total)

    def _images(self, what: str, done: int, total: int) -> None:
        if self.bar is not None and self._shown != what:
            self.bar.close()
            self.bar = None
        if self.bar is None:
            self.bar, self._shown = tqdm(total=total, desc=what, unit="image", leave=False), what
        moves(self.bar)(done, total)

    def begin(self, trainer: Trainer, run: Run) -> list[Callback]:
        """Called when training starts; returns the callback for the steps."""
        if self.bar is not None:
            self.bar.close()
        tqdm.write(f"Dataset: {trainer.dataset.in_words()}.")
        tqdm.write(f"Training on {trainer.model.name} ({trainer.model.spec}).")
        sys.stdout.flush()
        self.bar = tqdm(total=trainer.last_step, initial=trainer.step, desc="Training", unit="step")
        return [self]

    def __call__(self, event: Event) -> None:
        """A step was done, or a long one begins."""
        if self.bar is not None and isinstance(event, Compiling):
            self.bar.set_description("Compiling, a minute or more")
        if self.bar is not None and isinstance(event, Fitting):
            self.bar.set_description("Fitting to the prompt")
        if not isinstance(event, StepDone) or self.bar is None:
            return
        self._losses.append(event.loss)
        self.bar.set_description("Training", refresh=False)
        now = time.monotonic()
        if self.bar.update() and now - self._read_at > READ_EVERY_S:
            self._read_at = now
            for loss in self._losses:
                value = float(loss)
                self._smooth = value if self._smooth is None else 0.98 * self._smooth + 0.02 * value
            self._losses.clear()
            self.bar.set_postfix_str(f"loss {self._smooth:.4f}, learning rate {event.learning_rate:.3g}", refresh=False)
