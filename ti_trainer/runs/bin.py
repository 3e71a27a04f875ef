"""The bin: runs that the user has removed from the list, as LOG/bin/<day>/<name>. They can be restored."""

from __future__ import annotations

import logging
from pathlib import Path

from ti_trainer.files import free_path
from ti_trainer.runs import locks
from ti_trainer.runs.run_folder import Run

log = logging.getLogger(__name__)
FOLDER = "bin"  # within the log folder


def runs_in(log_dir: Path) -> list[Run]:
    """The runs in the bin, the most recently changed first."""
    return Run.all(log_dir / FOLDER)


def remove(run: Run, log_dir: Path) -> Run:
    """Move a run to the bin; ConfigError if another process trains it, OSError if it cannot be moved."""
    return _moved(run, log_dir / FOLDER)


def restore(run: Run, log_dir: Path) -> Run:
    """Move a run from the bin back to the list, with a number if there is another run of its name by now."""
    return _moved(run, log_dir)


def _moved(run: Run, folder: Path) -> Run:
    with locks.held(locks.of_run(run.path), f"The run {run.id}", log.info):
        target = free_path(folder / run.path.parent.name / run.path.name, "-")
        target.parent.mkdir(parents=True, exist_ok=True)
        run.path.rename(target)
    return Run(target)
