"""The WebUI's grammar for values that change during a run: `0.005:100, 1e-3:1000, 1e-5`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NoReturn

from ti_trainer.errors import ConfigError
from ti_trainer.functional.numbers import check_commas, plain


@dataclass(frozen=True)
class Schedule:
    """Stages as (value, last step it applies to), in the order of their steps; the run ends with the last stage.

    `unused` are the stages that are never reached, as they were typed; `text` is all of it, as typed. The values of a
    `relative` one are factors of a rate that depends on the model.
    """

    stages: tuple[tuple[float, int], ...]
    unused: tuple[str, ...] = ()
    text: str = field(default="", compare=False)
    relative: bool = False

    @classmethod
    def parse(cls, text: str, max_steps: int) -> Schedule:
        """Parse `value` or `value:step, ...`. A step below 1 is a fraction of max_steps; -1 or none means to the end.

        A stage that ends no later than the one before it is never reached. Raises ConfigError for anything else.
        """
        typed, text = text, plain(text)
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
        return cls(tuple(stages), tuple(unused), typed)

    def __str__(self) -> str:
        return self.text

    def check_positive(self, what: str) -> None:
        """Raise ConfigError if a value is 0, which trains nothing and usually comes from a decimal comma."""
        if any(value == 0 for value, _ in self.stages):
            message = f"found a {what} of 0, so nothing would be learned. Use a decimal point, as in 0.005."
            raise ConfigError(message)

    @property
    def last_step(self) -> int:
        """The step after which the run ends."""
        return self.stages[-1][1]

    def at(self, step: int) -> float:
        """The value for the update that completes step `step`, counted from 1; the last value beyond the end."""
        return next((value for value, last in self.stages if step <= last), self.stages[-1][0])


def _stage(part: str, max_steps: int) -> tuple[float, int]:
    """A value and the last step that it applies to, at most max_steps."""
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


def _refuse(found: str, expected: str) -> NoReturn:
    message = f"the schedule cannot be read at {found!r}: expected {expected}."
    raise ConfigError(message)
