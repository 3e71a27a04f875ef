"""The learning rate of each update: the WebUI's schedule times a warmup and a decay."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ti_trainer.functional.schedule import Schedule

DECAYS: dict[str, Callable[[float], float]] = {  # of how much of the run after the warmup is complete, 0 to 1
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}


@dataclass(frozen=True)
class LearningRate:
    """A schedule whose rates are multiplied by a factor that follows `diffusers.optimization.get_scheduler`.

    The factor rises from 0 over the warmup, then falls to 0 at `last_step` unless the decay is constant.
    """

    schedule: Schedule
    decay: str
    warmup_steps: int
    last_step: int

    def at(self, step: int) -> float:
        """The rate of the update that completes step `step`, counted from 1."""
        return self.schedule.at(step) * self._factor(step - 1)

    def _factor(self, completed: int) -> float:
        if completed < self.warmup_steps:
            return completed / self.warmup_steps
        progress = (completed - self.warmup_steps) / max(1, self.last_step - self.warmup_steps)
        return DECAYS[self.decay](min(1.0, progress))
