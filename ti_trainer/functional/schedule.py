"""The WebUI's grammar for numbers that change during a run: `0.005:100, 1e-3:1000, 1e-5`. Knows nothing of optimizers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ti_trainer.errors import ConfigError
from ti_trainer.functional.numbers import check_commas, plain


@dataclass(frozen=True)
class Schedule:
    """Stages as (value, last step it holds for), in order of their steps; the run ends with the last.

    `unused` are those that never come up, as they were written.
    """

    stages: tuple[tuple[float, int], ...]
    unused: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str, max_steps: int) -> Schedule:
        """Read `value` or `value:step, ...`. A step below 1 is a fraction of max_steps; -1 or none means to the end.

        Stages at or before an earlier stage's step never come up. Raises ConfigError for anything else.
        """
        text = plain(str(text))
        check_commas(text)
        stages: list[tuple[float, int]] = []
        unused = []
        for part in filter(None, (piece.strip() for piece in text.split(","))):
            value, step = _stage(part, max_steps)
            if step <= (stages[-1][1] if stages else 0):
                unused.append(part)
            if not stages or step > stages[-1][1]:
                stages.append((value, step))
        if not stages:
            _refuse(text, "a number such as 0.005, or a schedule such as 0.005:100, 1e-3:1000, 1e-5")
        return cls(tuple(stages), tuple(unused))

    def check_teaches(self, what: str) -> None:
        """ConfigError if a value is 0, with which nothing is learned: it comes of a decimal comma, mostly."""
        if any(value == 0 for value, _ in self.stages):
            message = f"found a {what} of 0, with which nothing would be learned. Use a decimal point, as in 0.005."
            raise ConfigError(message)

    @property
    def last_step(self) -> int:
        """The run is over after this step."""
        return self.stages[-1][1]

    def at(self, step: int) -> float:
        """The value for the update that makes `step` updates complete, counted from 1; the last one beyond the end."""
        return next((value for value, last in self.stages if step <= last), self.stages[-1][0])


def _stage(part: str, max_steps: int) -> tuple[float, int]:
    """A value and the last step that it holds for, at the latest the run's."""
    value_text, _, step_text = part.partition(":")
    value = _number(value_text, part)
    if value < 0:
        _refuse(part, "a value of 0 or more")
    step = _number(step_text, part) if step_text.strip() else -1.0
    if (step < 0 and step != -1) or (step > 1 and step % 1):
        _refuse(part, "a whole number of steps, a fraction of the maximum below 1, or -1 for to the end")
    if 0 < step < 1:
        step = step * max_steps
    return value, max_steps if step < 0 or step > max_steps else int(step)


def _number(text: str, part: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        _refuse(part, "value:step with two numbers, or a single number")
    return number


def _refuse(found: str, expected: str) -> None:
    message = f"the schedule cannot be read at {str(found)!r}: expected {expected}."
    raise ConfigError(message)
