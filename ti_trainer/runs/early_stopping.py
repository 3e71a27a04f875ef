"""Early stopping of a run on disk: measure the validation loss, and say at which step the result is the best."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from ti_trainer.config.training import TrainConfig
from ti_trainer.data.dataset import Dataset
from ti_trainer.data.held_out import choose, hold_out
from ti_trainer.offload.plan import ran_out
from ti_trainer.runs.run_folder import Run
from ti_trainer.runs.tables import VALIDATION_COLUMNS, append_row
from ti_trainer.training.early_stopping import MAX_RISE, EarlyStopping
from ti_trainer.training.events import Event, StepDone
from ti_trainer.training.selection import quick_loss
from ti_trainer.training.trainer import Trainer
from ti_trainer.training.vocabulary import Vocabulary

log = logging.getLogger(__name__)
HELD_OUT = "held_out"  # in settings.json
LONG = 10.0  # times the length of the vocabulary's vectors: then the rest of a prompt counts much less


def with_validation_images(config: TrainConfig, dataset: Dataset, resume: Run | None) -> Dataset:
    """The dataset with images held out, if the run measures itself by them. A resumed run keeps those of its start."""
    if resume is not None:
        return hold_out(dataset, held_out_of(resume))
    if EarlyStopping.of(config) is None or config.has_teacher:  # a teacher's targets are not in the images
        return dataset
    return hold_out(dataset, choose(dataset.items))


def held_out_of(run: Run) -> set[str]:
    """The names of the images that a run holds out for validation."""
    names = run.settings().get(HELD_OUT, [])
    return {str(each) for each in names} if isinstance(names, list) else set()


@dataclass
class KeepBest:
    """Measure the validation loss when it is due; the trainer keeps the best vectors and ends the run.

    The losses are written to the run's table, unless that has those of `evaluate_every`.
    """

    run: Run
    trainer: Trainer
    stopping: EarlyStopping
    writes: bool
    warn: Callable[[str], None] = log.warning

    def before(self) -> None:
        """Measure before the first step, for the table alone: the result of a run is always something that was trained."""
        loss = self._measured() if self.writes else None
        if loss is not None:
            append_row(self.run.validation_file, VALIDATION_COLUMNS, (self.trainer.step, f"{loss:.7f}"))

    def __call__(self, event: Event) -> None:
        """Measure if it is due."""
        if isinstance(event, StepDone) and self.stopping.is_due(event.step, self.trainer.last_step):
            loss = self._measured()
            if loss is not None:
                self.trainer.record_loss(loss)
                if self.writes:
                    append_row(self.run.validation_file, VALIDATION_COLUMNS, (event.step, f"{loss:.7f}"))

    def at_interruption(self) -> None:
        """Decide what an interrupted run results in: the vectors that it has now, if they are the best."""
        best = self.trainer.best_so_far
        if best is None or best.step == self.trainer.step:
            return
        loss = self._measured()
        if loss is not None and loss < best.loss:
            self.trainer.keep_current()

    def _measured(self) -> float | None:
        try:
            return quick_loss(self.trainer)
        except Exception as error:
            if not ran_out(error):  # a measurement must not end the run
                raise
            self.warn(f"The validation loss was not measured at step {self.trainer.step}: {error}")
            return None


def verdict(trainer: Trainer) -> str:
    """At which step the result of a finished run is the best, why the run ended, and whether it overfits; "" if unknown."""
    best, result = trainer.best_so_far, trainer.result[0]
    if best is None or result.step != best.step:
        return ""
    sentences = []
    if trainer.ended_early:
        how = "not" if best.step <= best.improved_at else "hardly"
        sentences.append(
            f"Done at step {trainer.step}: the validation loss has {how} improved since step {best.improved_at}."
        )
    sentences.append(f"Best at step {best.step} of {trainer.step}; the embedding is that of this step.")
    if best.rise > MAX_RISE:
        sentences.append(f"Since then the validation loss has risen by {best.rise:.0%} or more: more steps overfit.")
    usual = Vocabulary.of(trainer.model).norms
    length = max(float(each.norm(dim=1).mean()) / usual[encoder] for encoder, each in result.vectors.items())
    if length > LONG:
        sentences.append(
            f"Its vectors are {length:.0f} times as long as those of other words, so that the rest of a prompt counts less: "
            "try the optimizer sphere."
        )
    return " ".join(sentences)
