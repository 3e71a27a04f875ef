"""The learning rate of each update: the WebUI's schedule, or a rate that fits the model, times a warmup and a decay."""

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
AUTO = "auto"
# Of the standard deviation of the vocabulary's elements, per step: 0.003 on the embedded model, 0.005 on SD 1.x.
AUTO_FRACTION = 0.36
# The rates of optimizers for which this does not fit, by that standard deviation.
AUTO_RATES: dict[str, Callable[[float], float]] = {"prodigy": lambda spread: 1.0, "sphere": lambda spread: 0.03}


def parse_rate(text: str, max_steps: int) -> Schedule:
    """A learning rate: `auto`, or a schedule; ConfigError for anything else, and for a rate of 0."""
    if text.strip().lower() == AUTO:
        return Schedule(((1.0, max_steps),), text=AUTO, relative=True)
    schedule = Schedule.parse(text, max_steps)
    schedule.check_positive("rate")
    return schedule


def auto_rate(optimizer: str, spread: float) -> float:
    """The rate that `auto` starts from, by the standard deviation of the vocabulary's elements."""
    rate = AUTO_RATES.get(optimizer)
    return AUTO_FRACTION * spread if rate is None else rate(spread)


@dataclass(frozen=True)
class LearningRate:
    """A schedule whose rates are multiplied by a factor that follows `diffusers.optimization.get_scheduler`.

    The factor rises from 0 over the warmup, then falls to 0 at `last_step` unless the decay is constant. `unit` is what the
    values of a relative schedule are factors of.
    """

    schedule: Schedule
    decay: str
    warmup_steps: int
    last_step: int
    unit: float = 1.0

    def at(self, step: int) -> float:
        """The rate of the update that completes step `step`, counted from 1."""
        return self.unit * self.schedule.at(step) * self._factor(step - 1)

    def _factor(self, completed: int) -> float:
        if completed < self.warmup_steps:
            return completed / self.warmup_steps
        progress = (completed - self.warmup_steps) / max(1, self.last_step - self.warmup_steps)
        return DECAYS[self.decay](min(1.0, progress))
