"""The training loop. It yields events; knows no files, no progress bars and no folders."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from ti_trainer.config.training import TrainConfig
from ti_trainer.config.trials import last_step
from ti_trainer.data.dataset import Batch, Dataset
from ti_trainer.embedding import Embedding
from ti_trainer.errors import ConfigError, TITrainerError, TrainingError
from ti_trainer.functional.guidance import GuidanceScale
from ti_trainer.model import DiffusionModel, check_fits
from ti_trainer.offload.plan import ran_out
from ti_trainer.training.distributed import ALONE, Processes, Sum
from ti_trainer.training.events import Event, Finished, GaveWay, StepDone
from ti_trainer.training.pixel_loss import PixelLoss
from ti_trainer.training.state import TrainState, check_moved
from ti_trainer.training.step import grad_scaler, training_loss
from ti_trainer.training.trainable_embedding import TrainableEmbedding, check_state, learners_of

log = logging.getLogger(__name__)
# Updates within which fp16's scale is found. One that overflows is no step. Later it is not asked each time, since the CPU
# would wait for the GPU: an update that then overflows, at most one of some 2,000, counts as a step.
SCALE_SETTLES = 100
CHECK_EVERY = 10  # steps between looks at the losses: each look makes the CPU wait for the GPU


class Trainer:
    """Textual Inversion (arXiv:2208.01618): AdamW on the vectors of one embedding, everything else frozen.

    With a negative embedding, DreamArtist (arXiv:2211.11337): of both, and with guidance away from it inside the loss. With
    several trials, N of them share each pass through the network, N batches in one; nothing else is common to them.
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
    ) -> None:
        """Start at the embedding's step, or exactly where `state` was taken."""
        self._embeddings = [each for each in (embedding, negative) if each is not None]
        for each in self._embeddings:
            check_fits(model, each)
        self.model, self.dataset, self.config, self._pixel_loss = model, dataset, config, pixel_loss
        self._processes = processes
        self.step, self.micro_step = embedding.step, 0
        self.scale = None if negative is None else GuidanceScale.parse(config.train_cfg_scale)
        self.trainables = learners_of(config, model, self._embeddings, state)
        self._scaler = grad_scaler(model.device) if model.needs_loss_scaling else None
        self._settling = SCALE_SETTLES * config.gradient_accumulation_steps
        self._settles_at = self._settling + (state.micro_step if state is not None and state.scaler is None else 0)
        if state is not None:
            check_state(state, self.trainables, embedding)
            self._restore(state)
        self._lost = False  # whether the device answers no more: what is left then is the last good state
        self._good = self.state()
        self._to_tell: list[str] = []
        self.last_step = check_steps(embedding.name, self.step, config)

    @property
    def embedding_name(self) -> str:
        """Its word in prompts."""
        return self._embeddings[0].name

    @property
    def embedding(self) -> Embedding:
        """The embedding as it is now, on the CPU; of several trials the best so far."""
        return self.embeddings[0]

    @property
    def embeddings(self) -> list[Embedding]:
        """It, and the negative one if there is one, as they are now, on the CPU."""
        return self.best.now(self.step)

    @property
    def copies(self) -> list[Embedding]:
        """What a copy is made of now: the embeddings, and if one is kept the average of each, named NAME-ema.

        Of several trials, then those of each, with NAME-trial1 in the place of NAME.
        """
        copies = self.best.copies(self.step)
        if self.several:
            name = self.embedding_name
            for each in filter(TrainableEmbedding.is_finite, self.trainables):
                own = f"{name}-trial{each.plan.number}"
                copies += [replace(one, name=own + one.name.removeprefix(name)) for one in each.copies(self.step)]
        return copies

    @property
    def several(self) -> bool:
        """Whether there are trials of which one is kept."""
        return len(self.trainables) > 1

    @property
    def learning(self) -> list[TrainableEmbedding]:
        """The trials that go on: all but those that went wrong."""
        return [each for each in self.trainables if each.standing.aside_at is None]

    @property
    def best(self) -> TrainableEmbedding:
        """The try whose validation loss was the lowest when it was measured last; the first one until then."""
        ranked = self._ranked()
        # One may have gone wrong since the last check.
        return ranked[0] if len(ranked) == 1 else next((each for each in ranked if each.is_finite()), ranked[0])

    def judge(self, losses: Mapping[int, float]) -> None:
        """Take the validation losses of all trials that go on, by their numbers, as they were measured just now."""
        for each in self.learning:
            each.standing = replace(each.standing, loss=losses[each.plan.number], measured_at=self.step)

    def state(self) -> TrainState:
        """A copy of all that changes during a run, on the CPU, where it outlives a GPU that fails."""
        if self._lost:
            return self._good
        every = self.trainables
        vectors = {key: vectors.detach().to("cpu", copy=True) for each in every for key, vectors in each.named().items()}
        moments = {index: moments for each in every for index, moments in each.moments().items()}
        scaler = None if self._scaler is None else self._scaler.state_dict()
        average = {key: vectors for each in every for key, vectors in each.averages().items()}
        standings = tuple(each.standing for each in every) if self.several else ()
        return TrainState(self.step, self.micro_step, vectors, {"state": moments}, scaler, average, standings)

    def run(self, should_stop: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        """Train to the end, an event after every update; TrainingError, with the last good vectors, if it cannot go well.

        Of several processes each makes the same steps, stops after the same update and fails alike.
        """
        learning, batches = self.learning, self._batches()
        unchecked: list[Tensor] = []
        checked_once = False
        with self.model.training():
            while self.step < self.last_step and not self._processes.any(should_stop):
                losses, prompts, updated = self._update(learning, batches, should_stop)
                if not any(updated):
                    continue
                unchecked.append(losses)
                if len(unchecked) == CHECK_EVERY or self.step == self.last_step or not all(updated):
                    self._check_losses(learning, unchecked)
                    if len(learning) == 1:
                        self._check_scale()
                    if not checked_once:
                        check_moved(self._good, self.state())
                    checked_once = True
                    self._good = self.state()
                    unchecked.clear()
                    if len(learning) > len(self.learning):
                        learning, batches = self.learning, self._batches()
                epoch, epoch_step = divmod(self.micro_step * self.config.batch_size, self.dataset.epoch_length)
                yield StepDone(self.step, epoch, epoch_step, _mean(losses), self._ranked()[0].rate.at(self.step), prompts)
                yield from self._told()
            if unchecked:
                self._check_losses(learning, unchecked)
                yield from self._told()
        yield Finished(self.step, "done" if self.step >= self.last_step else "interrupted")

    def make_finite(self) -> None:
        """After any end of a run: what is no number any more, or may be wrong, goes back to the last good vectors.

        So does everything if the device fails, as after an error of CUDA, when nothing can be read from it.
        """
        try:
            wrong = [each for each in self.learning if not each.is_finite()]
        except RuntimeError as error:
            log.warning("The device does not answer any more (%s): the vectors of step %d are kept.", error, self._good.step)
            self._rescue()
            return
        if self._processes.spoiled or len(wrong) == len(self.learning):
            self._restore(self._good)
        else:
            for each in wrong:
                self._put_aside(each)

    def _rescue(self) -> None:
        """Go on existing on the CPU, as at the last good state."""
        self._lost, self._scaler = True, None
        self.step, self.micro_step = self._good.step, self._good.micro_step
        for each in self.trainables:
            each.move_to_cpu(self._good)

    def is_finite(self) -> bool:
        """Whether the vectors are numbers still; waits for the device."""
        return all(each.is_finite() for each in self.trainables)

    def _ranked(self) -> list[TrainableEmbedding]:
        return sorted(self.learning, key=lambda each: each.standing.rank)

    def _told(self) -> Iterator[GaveWay]:
        while self._to_tell:
            yield GaveWay(self.step, self._to_tell.pop(0))

    def _batches(self) -> Iterator[Batch]:
        """From here on, those that this process makes, each with a part for every trial that goes on."""
        micro_steps = self.config.gradient_accumulation_steps
        mine = self._processes.share(micro_steps)
        streams = [each.plan.number - 1 for each in self.learning]
        return _some_ahead(
            self.dataset.batches(
                self.config.batch_size, self.micro_step, lambda number: number % micro_steps in mine, streams
            )
        )

    def _update(
        self, learning: Sequence[TrainableEmbedding], batches: Iterator[Batch], should_stop: Callable[[], bool]
    ) -> tuple[Tensor, tuple[str, ...], list[bool]]:
        """One update of all that go on; returns the loss of each, the last prompts, and for each whether it was made.

        fp16's first ones often overflow; the update is a step if it was made for any of them.
        """
        micro_steps = self.config.gradient_accumulation_steps
        update = Sum(self._processes, _parameters(learning), micro_steps, len(learning))
        for index in update.mine:
            batch = next(batches)
            update.add(index, *self._gradients(learning, batch, micro_steps))
        losses = update.total(should_stop)
        ask = self.micro_step < self._settles_at or len(learning) > 1
        updated = [each.update(self.step + 1, self._scaler, ask=ask) for each in learning]
        if self._scaler is not None:
            self._scaler.update()
        self.step, self.micro_step = self.step + any(updated), self.micro_step + micro_steps
        if not any(updated):
            self._check_scale()
        elif not all(updated) and self._scaler.get_scale() < 1:
            losses = losses.where(torch.tensor(updated, device=losses.device), torch.nan)
        return losses, batch.prompts[: self.config.batch_size], updated

    def _gradients(
        self, learning: Sequence[TrainableEmbedding], batch: Batch, micro_steps: int
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """A batch's part of the update's losses and gradients; once more if the model can give way where it failed."""
        while True:
            try:
                return self._gradients_once(learning, batch, micro_steps)
            except Exception as error:  # noqa: PERF203 - a compiler raises anything
                if isinstance(error, TITrainerError):
                    raise
                traceback.clear_frames(error.__traceback__)  # they hold the memory that is to be freed
                if words := self.model.reduce_memory(error):
                    log.debug("The step is made once more after this:", exc_info=error)
                    self._to_tell.append(words)
                elif ran_out(error):
                    fewer = "fewer trials or " if len(learning) > 1 else ""
                    message = f"Memory ran out ({error}): use {fewer}a smaller batch size, width and height."
                    raise TrainingError(message) from error
                else:
                    raise

    def _gradients_once(
        self, learning: Sequence[TrainableEmbedding], batch: Batch, micro_steps: int
    ) -> tuple[Tensor, Sequence[Tensor]]:
        parameters, words = _parameters(learning), [each.words for each in learning]
        loss = training_loss(self.model, batch, words, self.scale, self._pixel_loss)  # (N B,)
        losses = torch.stack([each.mean() for each in loss.chunk(len(learning))]) / micro_steps
        total = losses.sum()  # what one trial loses depends on its own vectors alone
        scaled = total if self._scaler is None else self._scaler.scale(total)
        # At once or not at all: half of them must not be added up when it is made once more.
        gradients = torch.autograd.grad(scaled, parameters, allow_unused=True, materialize_grads=True)
        return losses.detach(), [each.detach() for each in gradients]  # torch 2.1's zeros would want gradients

    def _check_scale(self) -> None:
        """Raise TrainingError if fp16's gradients overflow however little they are scaled."""
        if self._scaler is not None and self._scaler.get_scale() < 1:
            message = f"Gradients overflow in fp16 (step {self.step}): use precision bf16 or fp32."
            raise TrainingError(message)

    def _check_losses(self, learning: Sequence[TrainableEmbedding], losses: list[Tensor]) -> None:
        """Put trials aside whose losses or vectors are not finite; TrainingError if all are, at the last good vectors."""
        finite = torch.stack(losses).isfinite().all(0).tolist()  # by trial
        wrong = [each for each, good in zip(learning, finite, strict=True) if not (good and each.is_finite())]
        if len(wrong) < len(learning):
            for each in wrong:
                self._put_aside(each)
            return
        step = self.step
        self._restore(self._good)
        message = (
            f"The loss is not a finite number any more (step {step}); the vectors are back at step {self.step}. "
            "Lower the learning rate or clip gradients; if this is the beginning, use precision fp32."
        )
        raise TrainingError(message)

    def _put_aside(self, trainable: TrainableEmbedding) -> None:
        if self._scaler is not None:  # its scale may be what this one brought it down to
            self._scaler, self._settles_at = grad_scaler(self.model.device), self.micro_step + self._settling
        trainable.restore(self._good)
        trainable.standing = replace(trainable.standing, aside_at=self._good.step)
        self._to_tell.append(
            f"Trial {trainable.plan.number} (learning rate {trainable.plan.learning_rate}) was stopped: its loss is no "
            f"longer finite (step {self.step}). Its vectors are back at step {self._good.step}; the other trials continue."
        )

    def _restore(self, state: TrainState) -> None:
        self.step, self.micro_step = state.step, state.micro_step
        for each in self.trainables:
            each.restore(state)
        if self._scaler is not None and state.scaler is not None:
            self._scaler.load_state_dict(state.scaler)


def _parameters(trainables: Sequence[TrainableEmbedding]) -> list[Tensor]:
    return [vectors for each in trainables for vectors in each.parameters]


def _mean(losses: Tensor) -> Tensor:
    """Of those that are finite, if there are several; nothing waits for the device."""
    if len(losses) == 1:
        return losses[0]
    finite = losses.isfinite()
    return losses.where(finite, 0.0).sum() / finite.sum()


def check_steps(name: str, step: int, config: TrainConfig) -> int:
    """The step after which a run is over; ConfigError if an embedding that is at `step` is there already."""
    last = last_step(config)
    if last == 0:
        message = "The learning rate schedule ends at step 0: nothing would be learned. Give a step of 1 or more, or none."
        raise ConfigError(message, "learning_rate")
    if step >= last:
        message = (
            f"{name!r} has been trained for {step} steps already and this run ends at {last}: raise max steps, or the "
            "steps of the learning rate schedule, or create it anew."
        )
        raise ConfigError(message, "max_steps")
    return last


def _some_ahead(batches: Iterator[Batch], count: int = 8) -> Iterator[Batch]:
    """The same batches, drawn several at a time: between steps the caches are full of the network, and drawing is slow."""
    while some := list(islice(batches, count)):
        yield from some
