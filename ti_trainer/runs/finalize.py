"""What a training leaves behind, however it ends. Knows no host."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ti_trainer.embedding import Embedding
from ti_trainer.formats import embeddings_dir, webui_optimizer
from ti_trainer.runs import replaced
from ti_trainer.runs.plots import before_and_after, plot_losses, preview_beside
from ti_trainer.runs.run_folder import Run
from ti_trainer.runs.trials import write_table
from ti_trainer.training.selection import trial_results
from ti_trainer.training.trainer import Trainer

log = logging.getLogger(__name__)


def keep(
    trainer: Trainer,
    run: Run,
    files: Sequence[Path],
    known: Mapping[Path, str],
    warn: Callable[[str], None],
    *,
    save_optimizer: bool,
) -> list[str]:
    """Write state, copies and embeddings, as much as can be; returns what could not be written, and where it is instead.

    `known` is what the files held, as far as the run knows: what else is in them is somebody else's and is kept aside.
    """
    trainer.make_finite()
    problems = []
    try:
        run.save_state(trainer.state(), trainer.dataset.fingerprint)
    except Exception as error:  # the embedding comes next, whatever that was
        state = f"The last saved state is of step {run.step}." if run.step else "There is no saved state to resume from."
        problems.append(f"{why(error)} {state}")
    copies = trainer.copies
    with suppress(OSError):
        write_table(run, trial_results(trainer))
    for each in copies:
        if trainer.has_trials or not run.copy_file(each).exists():  # the best may have been another one
            with suppress(OSError):  # whatever becomes of the copy, the embedding itself comes next
                run.write_copy(each)
    embedding = copies[0]
    try:
        for embedding, file in zip(copies, files, strict=False):  # averages come last, and have no file
            if not replaced.holds(file, known.get(file)):
                aside = replaced.keep_aside(file, run)
                warn(f"{file} was changed by somebody else during the run: what it held is kept as {aside}.")
            embeddings_dir.save(embedding, file, warn)
        if files[0].suffix == ".pt" and save_optimizer and len(files) == 1 and trainer.config.optimizer == "adamw":
            webui_optimizer.write_optimizer(files[0], copies[0], trainer.best.optimizer.state_dict())
    except OSError as error:
        return [*problems, _not_written(error, file, run, embedding)]
    with suppress(OSError):  # then the state says what they hold
        run.remember(replaced.digests(copies[: len(files)]))
    return problems


def draw_figures(run: Run, embedding: Path, warn: Callable[[str], None]) -> None:
    """The images that sum a run up, one of them beside the embedding. All is kept by then: a failure is only told."""
    figures: tuple[tuple[str, Callable[[], object]], ...] = (
        ("loss curve", lambda: plot_losses(run)),
        ("image of before and after", lambda: before_and_after(run)),
        ("preview beside the embedding", lambda: preview_beside(run, embedding)),
    )
    for what, draw in figures:
        try:
            draw()
        except Exception as error:  # noqa: PERF203 - damaged previews raise all kinds of errors
            log.debug("The %s:", what, exc_info=error)
            warn(f"The {what} could not be drawn ({str(error).strip() or type(error).__name__}); the training is complete.")


def failed(error: Exception | None, problems: Sequence[str], file: Path) -> str:
    """The message for a run that went wrong: what, and what is left."""
    said = [] if error is None else [why(error)]
    return " ".join([*said, *(problems or [f"What was learned until then is in {file}."])])


def why(error: Exception) -> str:
    """What went wrong, as a sentence."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.strerror}: {error.filename}."
    return str(error)


def _not_written(error: OSError, file: Path, run: Run, embedding: Embedding) -> str:
    copy = run.copy_file(embedding)
    what = f"{file} could not be written ({error.strerror or error})."
    if copy.exists():
        return f"{what} What was learned is in {copy}; once that is mended, put this copy into the embeddings folder."
    if run.step:
        return f"{what} Once that is mended, go on with the run: its state is of step {run.step}."
    return f"{what} There is no copy and no state of the run either: once that is mended, start it again."
