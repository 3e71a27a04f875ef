"""Detect during a run that training diverges: vectors that grow far too long, or a loss that rises."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from ti_trainer.runs.run_folder import Run
from ti_trainer.training.events import Event, Finished, StepDone
from ti_trainer.training.trainer import Trainer
from ti_trainer.training.vocabulary import Vocabulary

log = logging.getLogger(__name__)
# At default settings vectors are 9 times as long as those of the vocabulary after 300 steps, and 13 times after 1,000.
# They are useless long before they reach this factor. In long runs they grow at most with the square root of the step.
FAR, FAR_UNTIL = 50.0, 2000
CHECK_EVERY, CHECK_OFTEN_UNTIL = 50, 100  # steps; at first every 10, when the trainer reads the losses anyway
WINDOW = 100  # steps over which losses are averaged: a single loss depends mostly on its timestep
RISEN, VALIDATION_RISEN = 1.5, 1.1  # factors for the mean training loss, and for the validation loss, which has no noise
ADVICE = "The learning rate is probably too high: stop, and start again with a lower learning rate."


@dataclass
class Health:
    """A callback that warns once about each sign of divergence; `signs` holds the warnings."""

    run: Run
    trainer: Trainer
    warn: Callable[[str], None] = log.warning
    signs: list[str] = field(default_factory=list)
    _windows: list[float] = field(default_factory=list)
    _sum: Tensor | float = 0.0
    _count: int = 0

    def __post_init__(self) -> None:
        """Measure the vocabulary's vectors, and read the first losses of a run that is resumed."""
        self._usual = Vocabulary.of(self.trainer.model).norms
        earlier = [row["loss"] for row in self.run.losses() if row["step"] <= WINDOW]
        if self.trainer.step >= WINDOW and earlier:
            self._windows.append(sum(earlier) / len(earlier))
        self._warned_of_lengths = self._warned_of_loss = False

    def __call__(self, event: Event) -> None:
        """Check at some of the steps; waits for the device then."""
        if isinstance(event, StepDone):
            self._sum, self._count = self._sum + event.loss, self._count + 1
            if self._count == WINDOW:
                self._windows.append(float(self._sum) / WINDOW)
                self._sum, self._count = 0.0, 0
                self._check_losses(event.step)
        every = 10 if event.step <= CHECK_OFTEN_UNTIL else CHECK_EVERY
        if isinstance(event, Finished) or (isinstance(event, StepDone) and event.step % every == 0):
            self._check_lengths(event.step)
        often = self.trainer.config.evaluate_every
        if isinstance(event, Finished) or (often and isinstance(event, StepDone) and event.step % often == 0):
            self._check_validation(event.step, last=isinstance(event, Finished))

    def _check_lengths(self, step: int) -> None:
        longest = max(
            float(vectors.detach().norm(dim=1).max()) / self._usual[encoder]  # (V, D) -> scalar
            for embedding in self.trainer.best.vectors.values()
            for encoder, vectors in embedding.items()
        )
        if longest > FAR * max(1.0, step / FAR_UNTIL) ** 0.5 and not self._warned_of_lengths:
            self._warned_of_lengths = True
            self._warn(
                f"At step {step} the vectors of {self.trainer.embedding_name} are {longest:.0f} times as long as those of "
                f"the model's vocabulary, which is too long to be useful. {ADVICE}"
            )

    def _check_losses(self, step: int) -> None:
        first, *later = self._windows
        if len(later) >= 2 and min(later[-2:]) > RISEN * first:
            self._warn_of_loss(f"mean of the last {WINDOW} steps: {later[-1]:.4f}; of the first {WINDOW}: {first:.4f}", step)
        self._windows = [first, *later[-1:]]

    def _check_validation(self, step: int, *, last: bool) -> None:
        rows = self.run.validation_losses()
        later = [loss for _, loss in rows[1:]][-2:]
        if later and (last or len(later) == 2) and min(later) > VALIDATION_RISEN * rows[0][1]:
            self._warn_of_loss(f"validation loss: {later[-1]:.4f}; at the start: {rows[0][1]:.4f}", step)

    def _warn_of_loss(self, numbers: str, step: int) -> None:
        if not self._warned_of_loss:
            self._warned_of_loss = True
            name = self.trainer.embedding_name
            self._warn(f"Training {name} diverges: at step {step} the loss is above its start ({numbers}). {ADVICE}")

    def _warn(self, sign: str) -> None:
        self.signs.append(sign)
        self.warn(sign)
