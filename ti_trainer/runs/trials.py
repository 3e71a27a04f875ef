"""The trials of a run on disk: measured at its end, and listed in the run's trials.csv."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import fields

from ti_trainer.files import write_bytes
from ti_trainer.offload.plan import ran_out
from ti_trainer.runs.run_folder import Run
from ti_trainer.training.selection import TrialResult, evaluate_trials
from ti_trainer.training.trainer import Trainer

log = logging.getLogger(__name__)


def evaluate_trials_at_end(trainer: Trainer, run: Run, warn: Callable[[str], None]) -> None:
    """Measure the trials, if there are several, unless they were measured at this step; their state is kept before."""
    if trainer.has_trials and trainer.best.status.measured_at != trainer.step:
        run.save_state(trainer.state(), trainer.dataset.fingerprint)  # it takes a while, and a stop may be in a hurry
        log.info("The trials are compared")
        try:
            evaluate_trials(trainer)
        except Exception as error:
            if not ran_out(error):
                raise
            warn(f"The trials could not be compared in the end ({error}): what was measured before decides.")


def write_table(run: Run, found: Sequence[TrialResult]) -> None:
    """The run's trials.csv, anew; nothing of a run without trials."""
    if not found:
        return
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(each.name for each in fields(TrialResult))
    for each in found:
        loss = "" if each.validation_loss is None else f"{each.validation_loss:.7f}"
        last = (loss, *("yes" if yes else "no" for yes in (each.stopped, each.kept)))
        first = (each.number, each.learning_rate, each.init_text, each.num_vectors, each.noise, each.step)
        table.writerow((*first, *last))
    write_bytes(run.path / "trials.csv", text.getvalue().encode())
