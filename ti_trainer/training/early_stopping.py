"""Early stopping: keep the vectors with the lowest validation loss, and end a run that no longer improves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from ti_trainer.config.training import TrainConfig
from ti_trainer.functional.lr_scheduler import LearningRate
from ti_trainer.training.evaluation import NUM_TIMESTEPS

SHARE = 0.04  # of a run's time that measurements may take
FORWARDS_OF_STEP = 2.5  # forward passes that take as long as a sample of a step, with its backward pass; as measured
ROUND = 25  # intervals are multiples of it
PATIENCE = 3  # measurements without an improvement after which a run ends
MIN_IMPROVEMENT = 0.005  # of the validation loss, relative; less does not prolong a run
NOTICEABLY = 0.9  # a lower learning rate, relative
MAX_RISE = 0.05  # of the validation loss above its lowest, relative; an embedding overfits beyond it


@dataclass(frozen=True)
class EarlyStopping:
    """When to measure the validation loss, and when to end a run: both in steps."""

    every: int

    @classmethod
    def of(cls, config: TrainConfig) -> EarlyStopping | None:
        """The early stopping of a run; None if it is off, impossible, or the run too short for it.

        The interval depends on counts of forward passes alone, so that it is the same on every machine.
        """
        if not config.stop_when_done or why_not(config):
            return None
        samples = config.batch_size * config.gradient_accumulation_steps
        every = math.ceil(NUM_TIMESTEPS / (FORWARDS_OF_STEP * samples * SHARE) / ROUND) * ROUND
        return cls(every) if config.last_step > (PATIENCE + 1) * every else None

    @property
    def patience(self) -> int:
        """Steps without an improvement after which a run ends."""
        return PATIENCE * self.every

    def is_due(self, step: int, last_step: int) -> bool:
        """Whether to measure after a step."""
        return step % self.every == 0 or step == last_step

    def ends(self, best: Best, step: int, rate: LearningRate) -> bool:
        """Whether a run ends at a step. While the learning rate still falls, only if the loss rises."""
        return step - best.improved_at >= self.patience and (best.rise > MAX_RISE or not self._falls(rate, step))

    def _falls(self, rate: LearningRate, step: int) -> bool:
        """Whether the learning rate still falls, or fell within the patience: a lower rate usually lowers the loss.

        That of `auto` counts as constant if it falls too slowly to wait for, as in a run of very many steps.
        """
        before = rate.at(max(1, step - self.patience + 1))
        if rate.schedule.relative:
            return rate.at(min(2 * step, rate.last_step)) < NOTICEABLY * before
        return rate.at(rate.last_step) < before


@dataclass(frozen=True)
class Best:
    """The vectors with the lowest validation loss so far, by their names in a state, and their step.

    `improved_at` is the step of the last improvement that was large enough to count, to the loss `target`. `later` are the
    losses of the last PATIENCE measurements since.
    """

    step: int
    loss: float
    improved_at: int
    target: float
    vectors: Mapping[str, Tensor] = field(default_factory=dict)
    later: tuple[float, ...] = ()

    @property
    def rise(self) -> float:
        """By how much all the later losses are above the lowest, relative; 0 while there are fewer than PATIENCE."""
        return min(self.later) / self.loss - 1 if len(self.later) == PATIENCE and self.loss else 0.0

    @classmethod
    def after(cls, before: Best | None, step: int, loss: float, vectors: Mapping[str, Tensor]) -> Best:
        """The best after a measurement."""
        if before is None:
            return cls(step, loss, step, loss, vectors)
        if loss >= before.loss:
            return replace(before, later=(*before.later, loss)[-PATIENCE:])
        if loss > (1 - MIN_IMPROVEMENT) * before.target:
            return cls(step, loss, before.improved_at, before.target, vectors)
        return cls(step, loss, step, loss, vectors)


def why_not(config: TrainConfig) -> str:
    """Why a run with these options cannot stop early, as a sentence; "" if it can."""
    if config.trials > 1:
        return "With several trials the run does not stop early: the best trial is selected at the end."
    if config.reconstruction_weight or config.discriminator:
        return "With a pixel loss the run does not stop early: the validation loss does not include it."
    return ""
