"""Options as dataclass fields that check their values and can be shown as a widget, a flag or a row of a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ti_trainer.errors import ConfigError
from ti_trainer.functional.numbers import number

KINDS = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}  # as users read them


def option(
    default: Any,
    help: str,
    *,
    label: str,
    section: str,
    low: float | None = None,
    high: float | None = None,
    numbers: bool = False,
    choices: Iterable[str] = (),
    lines: int = 1,
) -> Any:
    """Declare a field: its default, help of one or two sentences, the label that WebUI users know, inclusive bounds.

    `numbers`: the text holds one or more numbers, which a settings file may give as numbers. `choices`: the values allowed,
    where they come from a list instead of the field's Literal type. `lines`: how many lines a text may have.
    """
    metadata: dict[str, Any] = {
        "help": help,
        "label": label,
        "section": section,
        "low": low,
        "high": high,
        "numbers": numbers,
        "lines": lines,
    }
    metadata["choices"] = tuple(choices)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Option:
    """One option of a config, with all that a widget, a flag or a row of a table needs."""

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
    lines: int = 1

    @property
    def flag(self) -> str:
        """The flag on the command line."""
        return "--" + self.name.replace("_", "-")

    def read(self, value: Any) -> Any:
        """Convert a value of a settings file to the option's type: '0.005' to 0.005, 8 to '8', 8.0 to 8.

        An ambiguous value is returned unchanged, for `check` to refuse; ConfigError for a decimal comma.
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
        """Raise ConfigError unless the value has the option's type, is one of its choices and is within its bounds."""
        if type(value) is not self.type and not (self.type is float and type(value) is int):
            self._refuse(value, "a number or a schedule" if self.numbers else KINDS[self.type])
        if self.choices and value not in self.choices:
            self._refuse(value, "one of " + ", ".join(self.choices))
        if self.low is not None and not value >= self.low:  # false for NaN too
            self._refuse(value, f"at least {self.low}")
        if self.high is not None and not value <= self.high:
            self._refuse(value, f"at most {self.high}")

    def _refuse(self, value: Any, expected: str) -> None:
        found = "nothing" if value is None else repr(value)
        message = f"{self.label} ({self.name}): found {found}, expected {expected}."
        raise ConfigError(message, self.name)


def options_of(config: type) -> Iterator[Option]:
    """The options of a dataclass whose fields were declared with `option`, in that order."""
    hints = get_type_hints(config)
    for each in dataclasses.fields(config):
        metadata, hint = dict(each.metadata), hints[each.name]
        choices = metadata.pop("choices") or (get_args(hint) if get_origin(hint) is Literal else ())
        yield Option(each.name, str if choices else hint, each.default, choices, **metadata)
