"""Take the steps of a run, and save its results however that ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ti_trainer.errors import TrainingError
from ti_trainer.runs import finalize
from ti_trainer.runs.callbacks import Callback
from ti_trainer.runs.early_stopping import KeepBest
from ti_trainer.runs.run_folder import Run
from ti_trainer.runs.trials import evaluate_trials_at_end
from ti_trainer.training.events import Compiling, Finished, MemoryReduced, TrialStopped
from ti_trainer.training.trainer import Trainer


def compile_network(trainer: Trainer, say: Callable[[str], None], callbacks: Sequence[Callback] = ()) -> None:
    """Have the network compiled, if wanted; callbacks receive `Compiling` before a step that takes longer for it."""

    def begins() -> None:
        for callback in callbacks:
            callback(Compiling(trainer.step))

    sizes, when = len({item.latents.shape for item in trainer.dataset.items}), trainer.config.compile
    if trainer.lora is not None:
        if when == "on":
            say("The network is not compiled: compiled code would leave out the LoRA.")
        when = "off"
    if summary := trainer.model.compile(when, trainer.last_step - trainer.step, sizes, begins):
        say(summary)


def train_and_save(
    trainer: Trainer,
    run: Run,
    callbacks: Sequence[Callback],
    keep_best: KeepBest | None,
    should_stop: Callable[[], bool],
    save: Callable[[], list[str]],
    file: Path,
    warn: Callable[[str], None],
) -> str:
    """Train, and save the results however training ends; the reason of its end.

    `save` returns a message for each result that could not be written, and `file` is the embedding's. TrainingError if
    training or saving failed.
    """
    try:
        reason = _steps(trainer, run, callbacks, should_stop, warn)
        if keep_best is not None and reason == "interrupted":
            keep_best.at_interruption()
    except (TrainingError, OSError, torch.cuda.OutOfMemoryError) as error:
        raise TrainingError(finalize.failure_message(error, save(), file)) from error
    except BaseException:
        for problem in save():
            warn(problem)
        raise
    if problems := save():
        raise TrainingError(finalize.failure_message(None, problems, file))
    return reason


def _steps(
    trainer: Trainer,
    run: Run,
    callbacks: Sequence[Callback],
    should_stop: Callable[[], bool],
    warn: Callable[[str], None],
) -> str:
    reason = "failed"
    for event in trainer.run(should_stop):
        for callback in callbacks:
            callback(event)
        if isinstance(event, MemoryReduced | TrialStopped):
            warn(event.message)
        elif isinstance(event, Finished):
            reason = event.reason
    evaluate_trials_at_end(trainer, run, warn)
    return reason
