"""Log messages and a progress bar in the WebUI's console. Imported only inside the WebUI."""

from __future__ import annotations

import logging
from typing import Any

from modules import shared
from tqdm import tqdm

INFO_LOGGERS = ("ti_trainer.runs.job",)  # whose messages of level INFO are shown


class Lines(logging.Handler):
    """Writes log messages on lines of their own, between progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            tqdm.write(self.format(record), file=getattr(shared, "progress_print_out", None))
        except Exception:  # a closed console must not end a training run
            self.handleError(record)


def listen() -> None:
    """Show our log messages from now on; calling it again changes nothing.

    They do not reach the root logger: the WebUI's first warning gives it a handler that writes into the middle of bars.
    """
    ours = logging.getLogger("ti_trainer")
    if not any(isinstance(each, Lines) for each in ours.handlers):
        lines = Lines()
        lines.setFormatter(logging.Formatter("TI Trainer: %(message)s"))
        ours.addHandler(lines)
        ours.propagate = False
    for name in INFO_LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO)


def bar(**options: Any) -> tqdm:
    """A progress bar where the WebUI's own are, unless it was started with those disabled."""
    return tqdm(file=shared.progress_print_out, disable=shared.cmd_opts.disable_console_progressbars, **options)
