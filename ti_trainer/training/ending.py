"""What a training leaves behind, however it ends. Knows no host."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ti_trainer import embeddings_dir, formats
from ti_trainer.errors import TrainingError
from ti_trainer.training.judging import verdicts, write_table
from ti_trainer.training.run import Run
from ti_trainer.training.trainer import Trainer


def keep(trainer: Trainer, run: Run, files: Sequence[Path], *, save_optimizer: bool) -> None:
    """Write the embeddings; TrainingError, which says where else they are, if that cannot be done."""
    copies = trainer.copies
    with suppress(OSError):
        write_table(run, verdicts(trainer))
    for each in copies:
        if trainer.several or not run.copy_file(each).exists():  # the best may have been another one
            with suppress(OSError):  # whatever becomes of the copy, the embedding itself comes next
                formats.write(each, run.copy_file(each))
    try:
        for embedding, file in zip(copies, files, strict=False):  # averages come last, and have no file
            embeddings_dir.save(embedding, file)
        if files[0].suffix == ".pt" and save_optimizer and len(files) == 1:
            formats.write_optimizer(files[0], copies[0], trainer.best.optimizer.state_dict())
    except OSError as error:
        copy = run.copy_file(embedding)
        message = (
            f"{file} could not be written ({error.strerror}). What was learned is in {copy}; once that is "
            "mended, put this copy into the embeddings folder."
        )
        raise TrainingError(message) from error


def failed_but_kept(error: Exception, file: Path) -> str:
    """The message for a run that went wrong: what, and what is left."""
    what = f"{error.strerror}: {error.filename}." if isinstance(error, OSError) and error.filename else error
    return f"{what} What was learned until then is in {file}."
