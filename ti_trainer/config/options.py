"""What an option is: a field of a dataclass that can check a value and become a widget, a flag or a line of a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ti_trainer.errors import ConfigError
from ti_trainer.functional.numbers import number

KINDS = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}  # for people who know no Python


def option(
    default: Any,
    help: str,
    *,
    label: str,
    section: str,
    low: float | None = None,
    high: float | None = None,
    numbers: bool = False,
) -> Any:
    """A field: its default, help in a sentence or two, the label that WebUI users know, inclusive bounds.

    `numbers`: a text of one number or more, for which a settings file may have numbers.
    """
    about = {"help": help, "label": label, "section": section, "low": low, "high": high, "numbers": numbers}
    return dataclasses.field(default=default, metadata=about)


@dataclass(frozen=True)
class Option:
    """One option, ready to become a widget, a flag or a line of a table."""

    name: str
    type: type
    default: Any
    choices: tuple[str, ...]
    help: str
    label: str
    section: str
    low: float | None
    high: float | None
    numbers: bool = False

    @property
    def flag(self) -> str:
        """As written on the command line."""
        return "--" + self.name.replace("_", "-")

    def read(self, value: Any) -> Any:
        """A value as a settings file may have it, as the option has it: 0.005 for '0.005', '8' for 8, 8.0 for 8.

        What could mean several things stays as it is, for `check` to refuse; ConfigError for a decimal comma.
        """
        if self.numbers:
            parts = value if isinstance(value, list | tuple) else [value]
            if parts and all(type(part) in (int, float) for part in parts):
                return "; ".join(map(repr, parts))
            if isinstance(value, list | tuple) and all(type(part) in (int, float, str) for part in parts):
                return "; ".join(map(str, parts))
        if self.type is int and isinstance(value, float) and value.is_integer():
            return int(value)
        if self.type in (int, float) and isinstance(value, str):
            try:
                return number(value, self.type)
            except ValueError as error:
                message = f"{self.label} ({self.name}): {error}."
                raise ConfigError(message, self.name) from error
        return value

    def check(self, value: Any) -> None:
        """Raise ConfigError unless the value has the option's type, is among its choices and within its bounds."""
        if type(value) is not self.type and not (self.type is float and type(value) is int):
            self._refuse(value, "a number or a schedule" if self.numbers else KINDS[self.type])
        if self.choices and value not in self.choices:
            self._refuse(value, "one of " + ", ".join(self.choices))
        if self.low is not None and not value >= self.low:  # a NaN is neither above nor below
            self._refuse(value, f"at least {self.low}")
        if self.high is not None and not value <= self.high:
            self._refuse(value, f"at most {self.high}")

    def _refuse(self, value: Any, expected: str) -> None:
        message = f"{self.label} ({self.name}): found {value!r}, expected {expected}."
        raise ConfigError(message, self.name)


def options_of(config: type) -> Iterator[Option]:
    """Every option of a dataclass whose fields were declared with `option`, in their order."""
    hints = get_type_hints(config)
    for each in dataclasses.fields(config):
        choices = get_args(hints[each.name]) if get_origin(hints[each.name]) is Literal else ()
        kind = str if choices else hints[each.name]
        yield Option(each.name, kind, each.default, choices, **each.metadata)
