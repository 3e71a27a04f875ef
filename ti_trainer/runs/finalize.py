"""Save a run's results when it ends, for whatever reason it ends."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ti_trainer.embedding import Embedding
from ti_trainer.errors import explained
from ti_trainer.formats import embeddings_dir, webui_optimizer
from ti_trainer.runs import integrity
from ti_trainer.runs.plots import before_and_after, plot_losses, preview_beside
from ti_trainer.runs.run_folder import Run
from ti_trainer.runs.trials import write_table
from ti_trainer.training.selection import trial_results
from ti_trainer.training.trainer import Trainer

log = logging.getLogger(__name__)


def save_results(
    trainer: Trainer,
    run: Run,
    files: Sequence[Path],
    digests: Mapping[Path, str],
    warn: Callable[[str], None],
    *,
    save_optimizer: bool,
) -> list[str]:
    """Write the state, copies and embeddings; returns a message for each of them that could not be written.

    `digests` are those of the files when the run read them. A file that has changed since is backed up first.
    """
    trainer.make_finite()
    problems = []
    try:
        run.save_state(trainer.state(), trainer.dataset.fingerprint)
    except Exception as error:  # the embedding still has to be saved
        state = f"The last saved state is of step {run.step}." if run.step else "There is no saved state to resume from."
        problems.append(f"{explained(error)} {state}")
    result, copies = trainer.result, trainer.copies
    with suppress(OSError):
        write_table(run, trial_results(trainer))
    for each in (*copies, *(result if trainer.best_so_far is not None else ())):
        if trainer.has_trials or not run.copy_file(each).exists():  # another trial may have been the best at that time
            with suppress(OSError):  # the embedding itself still has to be saved
                run.write_copy(each)
    embedding = result[0]
    try:
        for embedding, file in zip(result, files, strict=True):
            if not integrity.is_unchanged(file, digests.get(file)):
                warn(f"{file} was changed during the run. The changed file was copied to {integrity.back_up(file, run)}.")
            embeddings_dir.save(embedding, file, warn)
        is_last = result[0].step == copies[0].step  # the optimizer's state belongs to the last vectors
        has_optimizer = files[0].suffix == ".pt" and len(files) == 1 and trainer.config.optimizer == "adamw"
        if has_optimizer and save_optimizer and is_last:
            webui_optimizer.write_optimizer(files[0], result[0], trainer.best.optimizer.state_dict())
    except OSError as error:
        return [*problems, _not_written(error, file, run, embedding)]
    with suppress(OSError):  # the saved state has the same vectors
        run.record_files(integrity.digests(result))
    return problems


def draw_plots(run: Run, embedding: Path, step: int, warn: Callable[[str], None]) -> None:
    """Draw the run's plots and the preview beside the embedding, which is of this step.

    Everything is saved by then, so failures only warn.
    """
    plots: tuple[tuple[str, Callable[[], object]], ...] = (
        ("loss curve", lambda: plot_losses(run)),
        ("before-and-after image", lambda: before_and_after(run, step)),
        ("preview beside the embedding", lambda: preview_beside(run, embedding, step)),
    )
    for what, draw in plots:
        try:
            draw()
        except Exception as error:  # noqa: PERF203 - damaged previews raise all kinds of errors
            log.debug("The %s:", what, exc_info=error)
            warn(f"The {what} could not be drawn ({str(error).strip() or type(error).__name__}). The training is complete.")


def failure_message(error: Exception | None, problems: Sequence[str], file: Path) -> str:
    """The message of a run that failed: the error, and where its results are."""
    reason = [] if error is None else [explained(error)]
    return " ".join([*reason, *(problems or [f"The embedding as trained until then is in {file}."])])


def _not_written(error: OSError, file: Path, run: Run, embedding: Embedding) -> str:
    copy = run.copy_file(embedding)
    what = f"{file} could not be written ({error.strerror or error})."
    if copy.exists():
        return f"{what} The trained embedding is in {copy}. Fix the problem, then put this copy into the embeddings folder."
    if run.step:
        return f"{what} Fix the problem, then resume the run: its saved state is of step {run.step}."
    return f"{what} The run has no copy and no saved state either. Fix the problem, then start it again."
