"""What commands share that have options and may be interrupted. Knows no model: it is imported in no time."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from threading import Event
from typing import Any

from ti_trainer.config.options import Option
from ti_trainer.functional.numbers import number


def add_options(parser: argparse.ArgumentParser, sections: Mapping[str, str], options: Iterable[Option]) -> None:
    """A flag for each option, in a group for each section."""
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
    """What argparse reads a number of this kind with, however it is typed; it says what else was found."""

    def read(text: str) -> int | float:
        try:
            return number(text, kind)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read


def given_options(args: argparse.Namespace, options: Iterable[Option]) -> dict[str, Any]:
    """The options that were given as flags."""
    given = {option.name: getattr(args, option.name) for option in options}
    return {name: value for name, value in given.items() if value is not None}


@contextmanager
def interruptible(said: str, same_press_s: float = 0.0) -> Iterator[Event]:
    """Ctrl-C, a kill or the terminal's end sets the event, and what comes then is said.

    A second Ctrl-C, so much later, breaks off.
    """
    stop, broken_off, asked_at = Event(), Event(), 0.0

    def ask(number: int, frame: object) -> None:
        nonlocal asked_at
        if broken_off.is_set():
            return  # what is to be kept is being saved
        if not stop.is_set():
            asked_at = time.monotonic()
            stop.set()
            if said:
                with suppress(OSError):  # a terminal that is closed
                    print(f"\n{said}", file=sys.stderr)
        elif number == signal.SIGINT and time.monotonic() - asked_at >= same_press_s:
            broken_off.set()
            raise KeyboardInterrupt

    before = {number: signal.signal(number, ask) for number in end_signals()}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_signals() -> Iterator[signal.Signals]:
    """Signals that ask a program to end, where they exist; not the terminal's end under nohup, which ignores it."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):
        number = getattr(signal, name, None)
        if number is not None and not (name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN):
            yield number


@contextmanager
def above_bars() -> Iterator[None]:
    """What is logged or warned of has lines of its own, above progress bars."""
    from tqdm.contrib.logging import logging_redirect_tqdm

    logging.captureWarnings(True)
    try:
        with logging_redirect_tqdm():
            yield
    finally:
        logging.captureWarnings(False)
