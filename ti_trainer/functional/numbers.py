"""Parse numbers as people type them: full-width digits are accepted, a decimal comma is reported rather than guessed."""

from __future__ import annotations

import math
import re
import unicodedata

from ti_trainer.errors import ConfigError

# Commas also separate numbers, but usually with a decimal point before them or a space after them.
_COMMA = re.compile(r"(?<![\w.:+-])\d+,\d+(?:e[+-]?\d+)?|(?<=:)0,\d+", re.IGNORECASE)
_THOUSANDS = re.compile(r"(?<=:)\d{1,3}(?:,\d{3})+(?![\d.]|\s*:)")

_POINTS = r"(?!0+\.)\d{1,3}(?:\.\d{3})+"  # 1.000 with points between thousands; not 0.005
_STEP_WITH_POINTS = re.compile(rf"(?<=:){_POINTS}(?![\d.e])", re.IGNORECASE)


def plain(text: str) -> str:
    """The text with ASCII digits, commas, colons and minus signs instead of those of other keyboards."""
    return unicodedata.normalize("NFKC", text).replace("\N{MINUS SIGN}", "-").replace("\N{ARABIC DECIMAL SEPARATOR}", ",")


def decimal_comma(text: str) -> str:
    """The first number with a decimal comma in a text; "" if there is none."""
    found = _COMMA.search(plain(text))
    return found[0] if found else ""


def check_commas(text: str) -> None:
    """Raise ConfigError if a number has a decimal comma, or a step has commas or points between thousands."""
    typed = re.sub(r"\s*:\s*", ":", plain(text))
    if thousands := _THOUSANDS.search(typed):
        message = f"found {thousands[0]!r}, expected a step without commas: {thousands[0].replace(',', '')}."
        raise ConfigError(message)
    if thousands := _STEP_WITH_POINTS.search(typed):
        message = f"found {thousands[0]!r}, expected a step without points: {thousands[0].replace('.', '')}."
        raise ConfigError(message)
    if comma := decimal_comma(text):
        message = f"found {comma!r}, expected a decimal point: {comma.replace(',', '.')}."
        raise ConfigError(message)


def number(text: str, kind: type = float) -> int | float:
    """Parse a text as a float or int; ValueError, with a message for users, if it is not one."""
    typed = plain(text).strip()
    if "," in typed and re.fullmatch(r"[\d+,.-]+", typed):
        single = typed.count(",") == 1 and "." not in typed
        point = f"a decimal point: {typed.replace(',', '.')}" if single else "a number with one decimal point and no commas"
        expected = "a whole number without commas" if kind is int else point
        message = f"found {text!r}, expected {expected}"
        raise ValueError(message)
    if kind is int and re.fullmatch(_POINTS, typed):
        message = f"found {text!r}, expected a whole number without points"
        raise ValueError(message)
    try:
        value = float(typed)
    except ValueError:
        value = math.nan
    if math.isnan(value) or (kind is int and not value.is_integer()):
        message = f"found {text!r}, expected {'a whole number' if kind is int else 'a number'}"
        raise ValueError(message)
    if kind is int:
        return int(typed) if typed.lstrip("+-").isdecimal() else int(value)
    return value
