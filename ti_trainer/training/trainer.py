"""The training loop. It yields events and writes no files."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ti_trainer.config.training import TrainConfig
from ti_trainer.data.dataset import Batch, Dataset
from ti_trainer.embedding import Embedding
from ti_trainer.errors import TrainingError
from ti_trainer.functional.guidance import GuidanceScale
from ti_trainer.lora import Lora
from ti_trainer.model import DiffusionModel, check_fits
from ti_trainer.training.attention_matching import match_attention, suits
from ti_trainer.training.distributed import ALONE, Processes, Sum
from ti_trainer.training.early_stopping import Best, EarlyStopping
from ti_trainer.training.events import Event, Finished, Fitting, MemoryReduced, StepDone, TrialStopped
from ti_trainer.training.gradients import Objective, parameters_of
from ti_trainer.training.pixel_loss import PixelLoss
from ti_trainer.training.preservation import Preservation
from ti_trainer.training.state import TrainState, check_moved
from ti_trainer.training.step import grad_scaler
from ti_trainer.training.teacher import Teacher
from ti_trainer.training.trainable_embedding import NEGATIVE, TrainableEmbedding
from ti_trainer.training.trials import build_trials, check_state, check_steps

if TYPE_CHECKING:
    from torch.amp import GradScaler

log = logging.getLogger(__name__)
# Updates within which fp16's loss scale is found. One that overflows does not count as a step. Later it is not checked each
# time, which would make the CPU wait for the GPU: the rare update that then overflows, about one in 2,000, counts as a step.
SCALE_SETTLES = 100
CHECK_EVERY = 10  # steps between checks of the losses, each of which makes the CPU wait for the GPU


class Trainer:
    """Textual Inversion (arXiv:2208.01618): optimizes the vectors of one embedding while the model is frozen.

    With a negative embedding, trains both as in DreamArtist (arXiv:2211.11337), with guidance inside the loss. With several
    trials, their batches share each forward pass; the trials have nothing else in common.
    """

    def __init__(
        self,
        model: DiffusionModel,
        dataset: Dataset,
        embedding: Embedding,
        config: TrainConfig,
        state: TrainState | None = None,
        negative: Embedding | None = None,
        pixel_loss: PixelLoss | None = None,
        processes: Processes = ALONE,
        lora: Lora | None = None,
    ) -> None:
        """Start at the embedding's step, or exactly where `state` was saved. `lora` is the one that `config` names."""
        self._embeddings = [each for each in (embedding, negative) if each is not None]
        for each in self._embeddings:
            check_fits(model, each)
        self.model, self.dataset, self.config = model, dataset, config
        self._processes = processes
        self.step, self.micro_step, self.last_step = embedding.step, 0, config.last_step
        teacher = Teacher.of(config, embedding.name, lora)
        self.trials = build_trials(config, model, self._embeddings, state)
        init_texts = {each.trial.stream: each.status.init_text or "" for each in self.trials}
        at_a_time = dataset.repeated_samples.in_a_period
        preservation = Preservation(embedding.name, init_texts, at_a_time) if config.phrase_share else None
        guided = negative is not None and teacher is None
        self._objective = Objective.of(config, model, pixel_loss, teacher, preservation, guided=guided)
        self._scaler: GradScaler | None = grad_scaler(model.device) if model.needs_loss_scaling else None
        self._settling = SCALE_SETTLES * config.gradient_accumulation_steps
        self._settles_at = self._settling + (state.micro_step if state is not None and state.scaler is None else 0)
        self.early_stopping = EarlyStopping.of(config)
        self.best_so_far: Best | None = None
        self.ended_early = self._keeps_current = False
        unchanged = state is None or state.micro_step == 0  # as also when it was stopped while it was fitted
        self.matches_attention = self.step == 0 and unchanged and processes.size == 1 and suits(teacher, config)
        if state is not None:
            check_state(state, self.trials, embedding)
            self._restore(state)
            self._continue_from(state.best)
        self._device_failed = False  # then nothing can be read from it, and the last good state is all there is
        self._last_good = self.state()
        self._pending: list[MemoryReduced | TrialStopped] = []
        check_steps(embedding.name, self.step, config)

    @property
    def scale(self) -> GuidanceScale | None:
        """The CFG scale of DreamArtist's training; None without a negative embedding."""
        return self._objective.scale

    @property
    def teacher(self) -> Teacher | None:
        """What the embedding learns from instead of images, if it does."""
        return self._objective.teacher

    @property
    def lora(self) -> Lora | None:
        """The LoRA that the embedding learns from, if it does."""
        return None if self.teacher is None else self.teacher.lora

    @property
    def embedding_name(self) -> str:
        """The embedding's name, as prompts have it."""
        return self._embeddings[0].name

    @property
    def embedding(self) -> Embedding:
        """The embedding as it is now, on the CPU; with several trials, the best so far."""
        return self.embeddings[0]

    @property
    def embeddings(self) -> list[Embedding]:
        """The same, followed by the negative embedding if there is one."""
        return self.best.now(self.step)

    @property
    def result(self) -> list[Embedding]:
        """What the run results in: `embeddings`, or as they were at the step with the lowest validation loss."""
        best = self.best_so_far
        if best is None or self._keeps_current:
            return self.embeddings
        found = []
        for start, each in zip(("", NEGATIVE), self.best.embeddings, strict=False):
            vectors = {encoder: best.vectors[start + encoder].clone() for encoder in each.vectors}
            found.append(each.with_vectors(vectors, best.step))
        return found

    @property
    def copies(self) -> list[Embedding]:
        """What to save as copies: the embeddings and, if there is one, the moving average of each, named NAME-ema.

        With several trials, followed by those of each trial, named NAME-trial1 and so on.
        """
        copies = self.best.copies(self.step)
        if self.has_trials:
            name = self.embedding_name
            for each in filter(TrainableEmbedding.is_finite, self.trials):
                own = f"{name}-trial{each.trial.number}"
                copies += [replace(one, name=own + one.name.removeprefix(name)) for one in each.copies(self.step)]
        return copies

    @property
    def has_trials(self) -> bool:
        """Whether there are several trials, of which the best is kept."""
        return len(self.trials) > 1

    @property
    def active_trials(self) -> list[TrainableEmbedding]:
        """The trials that have not been stopped."""
        return [each for each in self.trials if each.status.stopped_at is None]

    @property
    def best(self) -> TrainableEmbedding:
        """The trial with the lowest validation loss at the last measurement; the first one before that."""
        ranked = self._ranked()
        # One may have diverged since the last check.
        return ranked[0] if len(ranked) == 1 else next((each for each in ranked if each.is_finite()), ranked[0])

    def record_validation(self, losses: Mapping[int, float]) -> None:
        """Store the validation losses that were just measured, by the numbers of the active trials."""
        for each in self.active_trials:
            each.status = replace(each.status, validation_loss=losses[each.trial.number], measured_at=self.step)

    def record_loss(self, loss: float) -> None:
        """Take note of a validation loss that was just measured, and end the run if it no longer improves."""
        stopping = self.early_stopping
        if stopping is None:
            message = "this run has no early stopping"
            raise RuntimeError(message)
        if not math.isfinite(loss):
            return
        vectors = {key: each.detach().to("cpu", copy=True) for key, each in self.best.named().items()}
        self.best_so_far = Best.after(self.best_so_far, self.step, loss, vectors)
        ends = stopping.ends(self.best_so_far, self.step, self.best.learning_rate)
        self.ended_early = ends and self.step < self.last_step

    def keep_current(self) -> None:
        """Make the current vectors the result of an interrupted run. A run that is resumed does not know of this."""
        self._keeps_current = True

    def state(self) -> TrainState:
        """A copy of everything that changes during a run, on the CPU, so that it survives a failing GPU."""
        if self._device_failed:
            return self._last_good
        vectors = {key: each.detach().to("cpu", copy=True) for one in self.trials for key, each in one.named().items()}
        average = {key: each for one in self.trials for key, each in one.averages().items()}
        optimizers = tuple(each.optimizer_state() for each in self.trials)
        scaler = None if self._scaler is None else self._scaler.state_dict()
        trials = tuple(each.status for each in self.trials) if self.has_trials else ()
        return TrainState(self.step, self.micro_step, vectors, optimizers, scaler, average, trials, self.best_so_far)

    def run(self, should_stop: Callable[[], bool] = lambda: False) -> Generator[Event, None, None]:
        """Train to the end, with an event after every update.

        TrainingError, at the last good vectors, if training cannot succeed. All processes of a distributed run make the
        same steps, stop after the same update and raise the same errors.
        """
        active, batches = self.active_trials, self._batches()
        unchecked: list[Tensor] = []
        first_check = True
        with self.model.training():
            if self.matches_attention and self.teacher is not None:
                yield Fitting(self.step)
                given = (self.model, self.teacher, self.dataset, self.config, self.trials)
                match_attention(*given, self._memory_reduced, should_stop)
                if should_stop():
                    self._restore(self._last_good)  # so that a run that is resumed fits them as an uninterrupted one
                self._last_good = self.state()
                yield from self._take_pending()
            while self.step < self.last_step and not self._processes.any(lambda: self.ended_early or should_stop()):
                losses, prompts, updated = self._update(active, batches, should_stop)
                if not any(updated):
                    continue
                unchecked.append(losses)
                if len(unchecked) == CHECK_EVERY or self.step == self.last_step or not all(updated):
                    self._check(active, unchecked, first=first_check)
                    first_check = False
                    unchecked.clear()
                    if len(active) > len(self.active_trials):
                        active, batches = self.active_trials, self._batches()
                yield self._step_done(losses, prompts)
                yield from self._take_pending()
            if unchecked:
                self._check_losses(active, unchecked)
                yield from self._take_pending()
        yield Finished(self.step, "done" if self.step >= self.last_step or self.ended_early else "interrupted")

    def make_finite(self) -> None:
        """After a run has ended in any way: restore the last good vectors where they are not finite or may be wrong.

        Everything is restored if the device fails, as after a CUDA error, when nothing can be read from it.
        """
        try:
            diverged = [each for each in self.active_trials if not each.is_finite()]
        except RuntimeError as error:
            log.warning("The device has failed (%s): the vectors of step %d are kept.", error, self._last_good.step)
            self._move_to_cpu()
            return
        if self._processes.spoiled or len(diverged) == len(self.active_trials):
            self._restore(self._last_good)
        else:
            for each in diverged:
                self._stop_trial(each)

    def _move_to_cpu(self) -> None:
        """Continue to exist on the CPU, at the last good state."""
        self._device_failed, self._scaler = True, None
        self.step, self.micro_step = self._last_good.step, self._last_good.micro_step
        for each in self.trials:
            each.move_to_cpu(self._last_good)

    def is_finite(self) -> bool:
        """Whether all vectors are finite; waits for the device."""
        return all(each.is_finite() for each in self.trials)

    def _ranked(self) -> list[TrainableEmbedding]:
        return sorted(self.active_trials, key=lambda each: each.status.rank)

    def _step_done(self, losses: Tensor, prompts: tuple[str, ...]) -> StepDone:
        epoch, epoch_step = divmod(self.micro_step * self.config.batch_size, self.dataset.epoch_length)
        rate = self._ranked()[0].learning_rate.at(self.step)
        return StepDone(self.step, epoch, epoch_step, _mean(losses), rate, prompts)

    def _take_pending(self) -> Iterator[Event]:
        while self._pending:
            yield replace(self._pending.pop(0), step=self.step)

    def _batches(self) -> Iterator[Batch]:
        """This process's batches from here on, each with a part for every active trial."""
        micro_steps = self.config.gradient_accumulation_steps
        mine = self._processes.share(micro_steps)
        streams = [each.trial.stream for each in self.active_trials]
        batches = self.dataset.batches(
            self.config.batch_size, self.micro_step, lambda number: number % micro_steps in mine, streams
        )
        return _prefetched(each.on(self.model.device) for each in batches)

    def _update(
        self, active: Sequence[TrainableEmbedding], batches: Iterator[Batch], should_stop: Callable[[], bool]
    ) -> tuple[Tensor, tuple[str, ...], list[bool]]:
        """One update of all active trials: the loss of each, the last prompts, and whether each was updated.

        The first updates in fp16 often overflow; an update is a step if it was made for any trial.
        """
        micro_steps = self.config.gradient_accumulation_steps
        update = Sum(self._processes, parameters_of(active), micro_steps, len(active))
        for index in update.mine:
            batch = next(batches)
            update.add(index, *self._objective.gradients(active, batch, micro_steps, self._scaler, self._memory_reduced))
        losses = update.total(should_stop)
        ask = self.micro_step < self._settles_at or len(active) > 1
        updated = [each.update(self.step + 1, self._scaler, ask=ask) for each in active]
        if self._scaler is not None:
            self._scaler.update()
        self.step, self.micro_step = self.step + any(updated), self.micro_step + micro_steps
        if not any(updated):
            self._check_scale()
        elif not all(updated) and self._scaler is not None and self._scaler.get_scale() < 1:
            losses = losses.where(torch.tensor(updated, device=losses.device), torch.nan)
        return losses, batch.prompts_without_phrases[: self.config.batch_size], updated

    def _memory_reduced(self, message: str) -> None:
        self._pending.append(MemoryReduced(self.step, message))

    def _check_scale(self) -> None:
        """Raise TrainingError if fp16's gradients overflow at any scale."""
        if self._scaler is not None and self._scaler.get_scale() < 1:
            message = f"Gradients overflow in fp16 (step {self.step}): compute in bf16 or fp32."
            raise TrainingError(message)

    def _check(self, active: Sequence[TrainableEmbedding], losses: list[Tensor], *, first: bool) -> None:
        """Check the steps since the last check; this becomes the last good state."""
        self._check_losses(active, losses)
        if len(active) == 1:
            self._check_scale()
        now = self.state()
        if first:
            check_moved(self._last_good, now)
        self._last_good = now

    def _check_losses(self, active: Sequence[TrainableEmbedding], losses: list[Tensor]) -> None:
        """Stop trials whose losses or vectors are not finite; TrainingError, at the last good vectors, if all are."""
        finite = torch.stack(losses).isfinite().all(0).tolist()  # by trial
        diverged = [each for each, good in zip(active, finite, strict=True) if not (good and each.is_finite())]
        if len(diverged) < len(active):
            for each in diverged:
                self._stop_trial(each)
            return
        step = self.step
        self._restore(self._last_good)
        message = (
            f"The loss is not a finite number (step {step}); the vectors are back at step {self.step}. "
            "Lower the learning rate or clip gradients; if this happens at the beginning, compute in fp32."
        )
        raise TrainingError(message)

    def _stop_trial(self, diverged: TrainableEmbedding) -> None:
        if self._scaler is not None:  # this trial may have brought its scale down
            self._scaler, self._settles_at = grad_scaler(self.model.device), self.micro_step + self._settling
        diverged.restore(self._last_good)
        diverged.status = replace(diverged.status, stopped_at=self._last_good.step)
        trial = diverged.trial
        message = (
            f"Trial {trial.number} (learning rate {trial.learning_rate}) was stopped: its loss is no longer finite (step "
            f"{self.step}). Its vectors are back at step {self._last_good.step}; the other trials continue."
        )
        self._pending.append(TrialStopped(self.step, trial.number, message))

    def _continue_from(self, best: Best | None) -> None:
        """Take over the best of a saved state. A run that had ended early is trained for as long again."""
        if self.early_stopping is None or best is None:
            return
        ended = self.early_stopping.ends(best, self.step, self.best.learning_rate)
        self.best_so_far = replace(best, improved_at=self.step) if ended else best

    def _restore(self, state: TrainState) -> None:
        self.step, self.micro_step = state.step, state.micro_step
        for each in self.trials:
            each.restore(state)
        if self._scaler is not None and state.scaler is not None:
            self._scaler.load_state_dict(state.scaler)


def _mean(losses: Tensor) -> Tensor:
    """The mean of the finite losses, computed without waiting for the device; a single loss is returned as it is."""
    if len(losses) == 1:
        return losses[0]
    finite = losses.isfinite()
    return losses.where(finite, 0.0).sum() / finite.sum()


def _prefetched(batches: Iterator[Batch], count: int = 8) -> Iterator[Batch]:
    """The same batches, drawn several at a time, which is faster than between steps, when caches are full of the model."""
    while some := list(islice(batches, count)):
        yield from some
