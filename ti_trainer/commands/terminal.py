"""Options as flags, Ctrl-C, and log lines above progress bars."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from threading import Event
from typing import TYPE_CHECKING, Any

from ti_trainer.config.options import Option
from ti_trainer.functional.numbers import number

if TYPE_CHECKING:
    from tqdm import tqdm


def add_options(parser: argparse.ArgumentParser, sections: Mapping[str, str], options: Iterable[Option]) -> None:
    """Add a flag for each option, in a group for each section."""
    groups = {section: parser.add_argument_group(title.lower()) for section, title in sections.items()}
    for option in options:
        _add_option(groups[option.section], option)


def _add_option(group: argparse._ArgumentGroup, option: Option) -> None:
    text = f"{option.help} (default: {option.default!r})".replace("%", "%%")
    if option.type is bool:
        group.add_argument(option.flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        return
    metavar = None if option.choices else {int: "N", float: "X", str: "TEXT"}[option.type]
    kind = option.type if option.type is str else number_of(option.type)
    group.add_argument(option.flag, type=kind, default=None, choices=option.choices or None, metavar=metavar, help=text)


def number_of(kind: type) -> Callable[[str], int | float]:
    """A parser of numbers for argparse, which reports what it found instead of a number."""

    def read(text: str) -> int | float:
        try:
            return number(text, kind)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read


def given_options(args: argparse.Namespace, options: Iterable[Option]) -> dict[str, Any]:
    """The options that were given as flags, by name."""
    given = {option.name: getattr(args, option.name) for option in options}
    return {name: value for name, value in given.items() if value is not None}


@contextmanager
def interruptible(message: str, same_press_s: float = 0.0) -> Iterator[Event]:
    """Yield an event that Ctrl-C, SIGTERM or the end of the terminal sets; `message` is printed then.

    A second Ctrl-C, at least `same_press_s` seconds later, raises KeyboardInterrupt.
    """
    stop, aborted, stopped_at = Event(), Event(), 0.0

    def handle(number: int, frame: object) -> None:
        nonlocal stopped_at
        if aborted.is_set():
            return  # results are being saved
        if not stop.is_set():
            stopped_at = time.monotonic()
            stop.set()
            if message:
                with suppress(OSError):  # the terminal may be closed
                    _print_in_handler(f"\n{message}\n")
        elif number == signal.SIGINT and time.monotonic() - stopped_at >= same_press_s:
            aborted.set()
            raise KeyboardInterrupt

    before = {number: signal.signal(number, handle) for number in end_signals()}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print_in_handler(text: str) -> None:
    """Write to the terminal from a signal's handler, which may have interrupted another write."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except RuntimeError:  # a stream cannot be written to while it is being written to
        os.write(sys.stderr.fileno(), text.encode())


def end_signals() -> Iterator[signal.Signals]:
    """Signals that ask a program to end, where they exist; without SIGHUP under nohup, which ignores it."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):
        number = getattr(signal, name, None)
        if number is not None and not (name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN):
            yield number


def moves(bar: tqdm[Any]) -> Callable[[int, int], None]:
    """A function of the number done and the total that moves the bar there."""

    def move(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return move


@contextmanager
def above_bars() -> Iterator[None]:
    """Print log records on lines of their own, above progress bars."""
    from tqdm.contrib.logging import logging_redirect_tqdm

    with logging_redirect_tqdm():
        yield
