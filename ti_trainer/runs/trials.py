"""Evaluate the trials of a run at its end, and write them to the run's trials.csv."""

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
    """Evaluate the trials, if there are several, unless that was done at this step already."""
    if trainer.has_trials and trainer.best.status.measured_at != trainer.step:
        run.save_state(trainer.state(), trainer.dataset.fingerprint)  # evaluation takes a while and may be interrupted
        log.info("Comparing the trials")
        try:
            evaluate_trials(trainer)
        except Exception as error:
            if not ran_out(error):
                raise
            warn(f"The trials could not be compared at the end ({error}). The last measurement before decides.")


def write_table(run: Run, found: Sequence[TrialResult]) -> None:
    """Write the run's trials.csv; nothing for a run of one trial."""
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
