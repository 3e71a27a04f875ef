"""What a run says in the WebUI's console: lines of their own, and a bar. Imported only inside the WebUI."""

from __future__ import annotations

import logging
from typing import Any

from modules import shared
from tqdm import tqdm

TOLD = ("ti_trainer.runs.job",)  # loggers whose information is for people who watch the console


class Lines(logging.Handler):
    """Writes what we log on lines of their own, whatever bars there may be."""

    def emit(self, record: logging.LogRecord) -> None:
        """What is asked of a handler."""
        try:
            tqdm.write(self.format(record), file=shared.progress_print_out)
        except Exception:  # a console that is gone must not end a training
            self.handleError(record)


def listen() -> None:
    """Show what we log from now on. Called more than once, it changes nothing.

    Not by the root logger: the host's own first warning gives it a handler, which writes in the middle of bars.
    """
    ours = logging.getLogger("ti_trainer")
    if not any(isinstance(each, Lines) for each in ours.handlers):
        lines = Lines()
        lines.setFormatter(logging.Formatter("TI Trainer: %(message)s"))
        ours.addHandler(lines)
        ours.propagate = False
    for name in TOLD:
        logging.getLogger(name).setLevel(logging.INFO)


def bar(**given: Any) -> tqdm:
    """A progress bar where the host's are, unless it was started without."""
    return tqdm(file=shared.progress_print_out, disable=shared.cmd_opts.disable_console_progressbars, **given)
