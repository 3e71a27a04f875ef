"""Regular expressions and replacements that users type: bounded in time, in memory and in what comes out of them.

Python's own `re` cannot be stopped; the package `regex` can, and understands what `re` does. But it writes repetitions out
when it compiles them, and its own additions (recursion, fuzzy matching) need much memory: so an expression must be one of
`re`, and is measured by the parser of `re` first.
"""

from __future__ import annotations

import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import regex

from ti_trainer.errors import ConfigError

if sys.version_info >= (3, 11):
    from re import _constants as constants
    from re import _parser as parser
else:
    import sre_constants as constants
    import sre_parse as parser

MOST_CHARACTERS = 1000  # of an expression or a replacement
MOST_WRITTEN_OUT = 100_000  # of an expression with every {n} written out; about 30 MB
MOST_RESULT = 100_000  # characters of a text that comes out: no caption or prompt is longer
MOST_GROWTH = 10_000_000  # of all texts of one replacement
PATIENCE_S = 3.0  # for all texts of one replacement
FINDING_S = 1.0  # for one text that is looked through
WORD_REGEX = ("Filename word regex", "filename_word_regex")  # the field and option for words of file names
MOST_SEARCHED = 20_000  # characters of a text: how much memory groups take depends on it
BRACE = re.compile(r"(?<!\\)(?:\\\\)*\{(?!\d*,?\d*\})")  # to `re` itself, to `regex` fuzzy matching
REPEATS = {each for each in vars(constants).values() if str(each) in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT")}


@lru_cache(maxsize=64)
def compiled(expression: str, field: str, option: str = "") -> regex.Pattern:
    """The expression that stands in `field`; ConfigError if it is none, or needs too much memory."""
    if len(expression) > MOST_CHARACTERS:
        raise _refused(field, option, f"{len(expression)} characters", f"at most {MOST_CHARACTERS}")
    if BRACE.search(expression):
        raise _refused(field, option, repr(expression), r"numbers within { }, or \{ for the character")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what later versions will read otherwise
            re.compile(expression)
            written_out = _written_out(parser.parse(expression))
        if written_out > MOST_WRITTEN_OUT:
            raise _refused(field, option, repr(expression), "fewer repetitions: less + within ( )+, smaller numbers in { }")
        return regex.compile(expression)
    except (re.error, regex.error, ValueError, OverflowError, RecursionError, MemoryError) as error:
        raise _refused(field, option, repr(expression), f"a regular expression ({error})") from error


def _written_out(parsed: Iterable[tuple[Any, Any]]) -> int:
    """How many steps there are once repetitions stand as often as they have to: + is one, and then any number."""
    steps = 1
    for kind, argument in parsed:
        if kind in REPEATS:
            least, most, inner = argument
            times = max(least + 1, 0 if most == constants.MAXREPEAT else most)
        else:
            times, inner = 1, argument
        steps += 1 + times * sum(map(_written_out, _within(inner)))
    return steps


def _within(argument: Any) -> Iterable[Any]:
    """The expressions in what a step is told: groups, branches and conditions keep them in tuples and lists."""
    if isinstance(argument, parser.SubPattern):
        yield argument
    elif isinstance(argument, list | tuple):
        for each in argument:
            yield from _within(each)


def findings(expression: str, text: str, field: str, option: str = "") -> list[str | tuple[str, ...]]:
    """As `re.findall`: each finding, or its groups. ConfigError as for `compiled`, or if it takes too long."""
    pattern = compiled(expression, field, option)
    _check_length(text, MOST_CHARACTERS, field, option)
    try:
        return pattern.findall(text, timeout=FINDING_S, concurrent=True)
    except (TimeoutError, MemoryError) as error:
        raise _too_slow(field, option, expression) from error


def replacing(search: str, by: str, field: str, *, is_regex: bool) -> Callable[[str], str]:
    r"""What replaces text in one caption after another: each finding, as `re.sub` with \1, \2 and so on where it is_regex.

    ConfigError, also of the function, if that is wrong, takes too long, or makes too much text.
    """
    if len(by) > MOST_CHARACTERS:
        raise _refused(field, "", f"a replacement of {len(by)} characters", f"at most {MOST_CHARACTERS}")
    substituted, left = _substituting(search, by, field) if is_regex else None, MOST_GROWTH

    def check(growth: int) -> None:
        if growth > min(left, MOST_RESULT):
            expected = f"at most {MOST_RESULT} characters more in a caption, and {MOST_GROWTH} in all"
            raise _refused(field, "", "a replacement that makes captions longer and longer", expected)

    def replaced(text: str) -> str:
        nonlocal left
        if substituted:
            new = substituted(text, check)
        else:
            check(text.count(search) * (len(by) - len(search)))
            new = text.replace(search, by)
        left -= max(0, len(new) - len(text))
        return new

    return replaced


def _substituting(search: str, by: str, field: str) -> Callable[[str, Callable[[int], None]], str]:
    """`re.sub` in one text after another; before a text grows, the check is told the most that it can have grown."""
    pattern, end, escapes = compiled(search, field), time.monotonic() + PATIENCE_S, by.count("\\")

    def substituted(text: str, check: Callable[[int], None]) -> str:
        _check_length(text, MOST_SEARCHED, field, "")
        grown = 0

        def expanded(found: regex.Match) -> str:
            nonlocal grown
            longest = max(map(len, (found[0], *filter(None, found.groups()))))
            check(grown + len(by) + escapes * longest - len(found[0]))  # each escape may be a group
            new = found.expand(by)
            grown += len(new) - len(found[0])
            return new

        try:
            return pattern.sub(expanded, text, timeout=max(0.001, end - time.monotonic()), concurrent=True)
        except (regex.error, IndexError, ValueError, OverflowError) as error:
            raise _refused(field, "", f"{search!r} and {by!r}", f"a regular expression ({error})") from error
        except (TimeoutError, MemoryError) as error:
            raise _too_slow(field, "", search) from error

    return substituted


def _check_length(text: str, most: int, field: str, option: str) -> None:
    if len(text) > most:
        raise _refused(field, option, f"a text of {len(text)} characters to search in", f"at most {most}")


def _too_slow(field: str, option: str, expression: str) -> ConfigError:
    message = (
        f"{field}: the regular expression {expression!r} takes too long: make it simpler, such as by fewer * and + "
        "within ( )."
    )
    return ConfigError(message, option)


def _refused(field: str, option: str, found: str, expected: str) -> ConfigError:
    return ConfigError(f"{field}: found {found:.300}, expected {expected}.", option)
