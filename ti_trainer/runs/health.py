"""Signs that a training goes nowhere, found while it can be stopped: vectors out of all proportion, a loss that rises."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ti_trainer.model import DiffusionModel
from ti_trainer.runs.run_folder import Run
from ti_trainer.training.events import Event, Finished, StepDone
from ti_trainer.training.trainer import Trainer

log = logging.getLogger(__name__)
WORDS = "a photo of the old house with two small red dogs on green grass near water and a big white car under blue sky"
# At default settings vectors are 9 times as long as a word's after 300 steps, 13 times after 1,000. They are useless long
# before this; a hundred thousand steps must not raise an alarm, and grow with their square root at the most.
FAR, FAR_UNTIL = 50.0, 2000
LOOK_EVERY, LOOK_OFTEN_UNTIL = 50, 100  # steps; at first every 10, as the trainer looks at losses then anyway
WINDOW = 100  # steps of which losses are averaged: single ones depend on their timestep more than on anything
RISEN, RISEN_EXACTLY = 1.5, 1.1  # of training losses in two windows; of the validation loss, which has no noise
ADVICE = "The learning rate is probably too high: stop, and train anew with a lower learning rate."


@dataclass
class Health:
    """Warns once of each sign; `signs` are all that it warned of."""

    run: Run
    trainer: Trainer
    warn: Callable[[str], None] = log.warning
    signs: list[str] = field(default_factory=list)
    _windows: list[float] = field(default_factory=list)
    _sum: Tensor | float = 0.0
    _count: int = 0

    def __post_init__(self) -> None:
        """The lengths that a model's words have, and where the losses of a run that goes on began."""
        self._usual = usual_lengths(self.trainer.model)
        earlier = [row["loss"] for row in self.run.losses() if row["step"] <= WINDOW]
        if self.trainer.step >= WINDOW and earlier:
            self._windows.append(sum(earlier) / len(earlier))
        self._lengths_told = self._loss_told = False

    def __call__(self, event: Event) -> None:
        """Look if it is time; waits for the device then."""
        if isinstance(event, StepDone):
            self._sum, self._count = self._sum + event.loss, self._count + 1
            if self._count == WINDOW:
                self._windows.append(float(self._sum) / WINDOW)
                self._sum, self._count = 0.0, 0
                self._look_at_losses(event.step)
        every = 10 if event.step <= LOOK_OFTEN_UNTIL else LOOK_EVERY
        if isinstance(event, Finished) or (isinstance(event, StepDone) and event.step % every == 0):
            self._look_at_lengths(event.step)
        often = self.trainer.config.evaluate_every
        if isinstance(event, Finished) or (often and isinstance(event, StepDone) and event.step % often == 0):
            self._look_at_validation(event.step, last=isinstance(event, Finished))

    def _look_at_lengths(self, step: int) -> None:
        words = self.trainer.best.vectors
        longest = max(
            float(vectors.detach().norm(dim=1).max()) / self._usual[encoder]
            for word in words.values()
            for encoder, vectors in word.items()
        )
        if longest > FAR * max(1.0, step / FAR_UNTIL) ** 0.5 and not self._lengths_told:
            self._lengths_told = True
            self._tell(
                f"The vectors of {self.trainer.embedding_name} are {longest:.0f} times as long as the model's words at step "
                f"{step}, far longer than any that are of use. {ADVICE}"
            )

    def _look_at_losses(self, step: int) -> None:
        first, *later = self._windows
        if len(later) >= 2 and min(later[-2:]) > RISEN * first:
            self._tell_of_loss(
                f"the mean of the last {WINDOW} steps is {later[-1]:.4f}, that of the first {first:.4f}", step
            )
        self._windows = [first, *later[-1:]]

    def _look_at_validation(self, step: int, *, last: bool) -> None:
        rows = self.run.validation_losses()
        later = [loss for _, loss in rows[1:]][-2:]
        if later and (last or len(later) == 2) and min(later) > RISEN_EXACTLY * rows[0][1]:
            self._tell_of_loss(f"the validation loss is {later[-1]:.4f}, and was {rows[0][1]:.4f} at first", step)

    def _tell_of_loss(self, figures: str, step: int) -> None:
        if not self._loss_told:
            self._loss_told = True
            name = self.trainer.embedding_name
            self._tell(
                f"The training of {name} diverges: at step {step} the loss is above its beginning ({figures}). {ADVICE}"
            )

    def _tell(self, sign: str) -> None:
        self.signs.append(sign)
        self.warn(sign)


def usual_lengths(model: DiffusionModel) -> dict[str, float]:
    """The median length of common words' vectors, by text encoder."""
    return {
        encoder: max(float(tokens.float().norm(dim=1).median()), torch.finfo(torch.float32).tiny)
        for encoder, tokens in model.token_embeddings(WORDS).items()
    }
