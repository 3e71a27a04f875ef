"""Run regular expressions and replacements that users type, with limits on time, memory and the length of the result.

Python's own `re` cannot be stopped. The package `regex` has a time limit and accepts the syntax of `re`, but it expands
repetitions when it compiles them, and its extensions (recursion, fuzzy matching) need much memory. So an expression must be
valid for `re`, whose parser measures it first.
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

MAX_CHARACTERS = 1000  # of an expression or a replacement
MAX_EXPANDED = 100_000  # steps of an expression with every {n} expanded; about 30 MB
MAX_RESULT = 100_000  # characters of a result: no caption or prompt is longer
MAX_GROWTH = 10_000_000  # characters that all texts of one replacement may grow by
REPLACING_S = 3.0  # for all texts of one replacement
FINDING_S = 1.0  # for one text that is searched
WORD_REGEX = ("Filename word regex", "filename_word_regex")  # the field and option for words of file names
MAX_SEARCHED = 20_000  # characters of a text: the memory that groups take depends on it
BRACE = re.compile(r"(?<!\\)(?:\\\\)*\{(?!\d*,?\d*\})")  # a literal brace for `re`, fuzzy matching for `regex`
REPEATS = {each for each in vars(constants).values() if str(each) in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT")}


@lru_cache(maxsize=64)
def compiled(expression: str, field: str, option: str = "") -> regex.Pattern[str]:
    """Compile the expression typed into `field`; ConfigError if it is invalid or needs too much memory."""
    if len(expression) > MAX_CHARACTERS:
        raise _refused(field, option, f"{len(expression)} characters", f"at most {MAX_CHARACTERS}")
    if BRACE.search(expression):
        raise _refused(field, option, repr(expression), r"numbers within { }, or \{ for the character")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about syntax that later versions of Python read differently
            re.compile(expression)
            steps = _expanded(parser.parse(expression))
        if steps > MAX_EXPANDED:
            raise _refused(field, option, repr(expression), "fewer repetitions: less + within ( )+, smaller numbers in { }")
        return regex.compile(expression)
    except (re.error, regex.error, ValueError, OverflowError, RecursionError, MemoryError) as error:
        raise _refused(field, option, repr(expression), f"a regular expression ({error})") from error


def _expanded(parsed: Any) -> int:
    """Number of steps of what `re` parsed, with repetitions expanded as `regex` does: x+ is one x, and then any number."""
    steps = 1
    for kind, argument in parsed:
        if kind in REPEATS:
            least, most, inner = argument
            times = max(least + 1, 0 if most == constants.MAXREPEAT else most)
        else:
            times, inner = 1, argument
        steps += 1 + times * sum(map(_expanded, _within(inner)))
    return steps


def _within(argument: Any) -> Iterable[Any]:
    """The expressions in a step's argument: groups, branches and conditions keep them in tuples and lists."""
    if isinstance(argument, parser.SubPattern):
        yield argument
    elif isinstance(argument, list | tuple):
        for each in argument:
            yield from _within(each)


def findings(expression: str, text: str, field: str, option: str = "") -> list[str | tuple[str, ...]]:
    """As `re.findall`: each match, or its groups. ConfigError as for `compiled`, or if it takes too long."""
    pattern = compiled(expression, field, option)
    _check_length(text, MAX_CHARACTERS, field, option)
    try:
        found: list[str | tuple[str, ...]] = pattern.findall(text, timeout=FINDING_S, concurrent=True)
    except (TimeoutError, MemoryError) as error:
        raise _too_slow(field, option, expression) from error
    return found


def replacing(search: str, by: str, field: str, *, is_regex: bool) -> Callable[[str], str]:
    r"""Return a function that replaces text in a caption, as `re.sub` with \1, \2 and so on for a regular expression.

    Both raise ConfigError if the expression is invalid, takes too long, or makes the texts too long.
    """
    if len(by) > MAX_CHARACTERS:
        raise _refused(field, "", f"a replacement of {len(by)} characters", f"at most {MAX_CHARACTERS}")
    substituted, left = _substituting(search, by, field) if is_regex else None, MAX_GROWTH

    def check(growth: int) -> None:
        if growth > min(left, MAX_RESULT):
            expected = f"at most {MAX_RESULT} characters more in a caption, and {MAX_GROWTH} in all"
            raise _refused(field, "", "a replacement that makes captions too long", expected)

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
    """`re.sub` for one text after another. Before a text grows, `check` gets the most that it can grow by."""
    pattern, end, escapes = compiled(search, field), time.monotonic() + REPLACING_S, by.count("\\")

    def substituted(text: str, check: Callable[[int], None]) -> str:
        _check_length(text, MAX_SEARCHED, field, "")
        grown = 0

        def expanded(found: regex.Match[str]) -> str:
            nonlocal grown
            longest = max(map(len, (found[0], *filter(None, found.groups()))))
            check(grown + len(by) + escapes * longest - len(found[0]))  # each escape may be a group
            new: str = found.expand(by)
            grown += len(new) - len(found[0])
            return new

        try:
            result: str = pattern.sub(expanded, text, timeout=max(0.001, end - time.monotonic()), concurrent=True)
        except (regex.error, IndexError, ValueError, OverflowError) as error:
            raise _refused(field, "", f"{search!r} and {by!r}", f"a regular expression ({error})") from error
        except (TimeoutError, MemoryError) as error:
            raise _too_slow(field, "", search) from error
        return result

    return substituted


def _check_length(text: str, maximum: int, field: str, option: str) -> None:
    if len(text) > maximum:
        raise _refused(field, option, f"a text of {len(text)} characters to search in", f"at most {maximum}")


def _too_slow(field: str, option: str, expression: str) -> ConfigError:
    message = (
        f"{field}: the regular expression {expression!r} takes too long. Simplify it, for example with fewer * and + "
        "within ( )."
    )
    return ConfigError(message, option)


def _refused(field: str, option: str, found: str, expected: str) -> ConfigError:
    return ConfigError(f"{field}: found {found:.300}, expected {expected}.", option)
