"""The WebUI's grammar for numbers that change during a run: `0.005:100, 1e-3:1000, 1e-5`. Knows nothing of optimizers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ti_trainer.errors import ConfigError


@dataclass(frozen=True)
class Schedule:
    """Stages as (value, last step it holds for), in order of their steps; the run ends with the last."""

    stages: tuple[tuple[float, int], ...]

    @classmethod
    def parse(cls, text: str, max_steps: int) -> Schedule:
        """Read `value` or `value:step, ...`. A step below 1 is a fraction of max_steps; -1 or none means to the end.

        Stages at or before an earlier stage's step never come up. Raises ConfigError for anything else.
        """
        stages: list[tuple[float, int]] = []
        for part in filter(None, (piece.strip() for piece in str(text).split(","))):
            value_text, _, step_text = part.partition(":")
            value = _number(value_text, part)
            if value < 0:
                _refuse(part, "a value of 0 or more")
            step = _number(step_text, part) if step_text.strip() else -1.0
            if (step < 0 and step != -1) or (step > 1 and step % 1):
                _refuse(part, "a whole number of steps, a fraction of the maximum below 1, or -1 for to the end")
            if 0 < step < 1:
                step = step * max_steps
            if step < 0 or step > max_steps:
                stages.append((value, max_steps))
                break
            if not stages or int(step) > stages[-1][1]:
                stages.append((value, int(step)))
        if not stages:
            _refuse(text, "a number such as 0.005, or a schedule such as 0.005:100, 1e-3:1000, 1e-5")
        return cls(tuple(stages))

    @property
    def last_step(self) -> int:
        """The run is over after this step."""
        return self.stages[-1][1]

    def at(self, step: int) -> float:
        """The value for the update that makes `step` updates complete, counted from 1; the last one beyond the end."""
        return next((value for value, last in self.stages if step <= last), self.stages[-1][0])


def _number(text: str, part: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        _refuse(part, "value:step with two numbers, or a single number")
    return number


def _refuse(found: str, expected: str) -> None:
    message = f"The schedule cannot be read at {str(found)!r}: expected {expected}."
    raise ConfigError(message)
