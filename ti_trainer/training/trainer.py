"""The training loop. It yields events; knows no files, no progress bars and no folders."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor

from ti_trainer.config import TrainConfig
from ti_trainer.data.dataset import Batch, Dataset
from ti_trainer.embedding import Embedding, averaged_name
from ti_trainer.errors import ConfigError, TrainingError
from ti_trainer.model import DiffusionModel, Vectors, check_fits
from ti_trainer.training.average import MovingAverage
from ti_trainer.training.guidance import GuidanceScale
from ti_trainer.training.pixels import PixelLoss
from ti_trainer.training.processes import ALONE, Processes, Sum
from ti_trainer.training.schedule import Schedule
from ti_trainer.training.step import adamw, grad_scaler, optimizer_step, training_loss

PREFIXES = ("", "negative.")  # before a text encoder's name, in a state: the negative embedding's vectors have one
# Updates within which fp16's scale is found. One that overflows is no step. Later it is not asked each time, since the CPU
# would wait for the GPU: an update that then overflows, at most one of some 2,000, counts as a step.
SCALE_SETTLES = 100
CHECK_EVERY = 10  # steps between looks at the losses: each look makes the CPU wait for the GPU


@dataclass(frozen=True)
class StepDone:
    """`step` updates are complete. The loss is the mean of the update's samples, still on the device."""

    step: int
    epoch: int
    epoch_step: int
    loss: Tensor
    learning_rate: float
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class GaveWay:
    """What the model gave up so that step `step`, which had failed, could be made after all; in words."""

    step: int
    words: str


@dataclass(frozen=True)
class Compiling:
    """The step after step `step` takes a minute or more, since the network is compiled for it."""

    step: int


@dataclass(frozen=True)
class Finished:
    """Nothing comes after this."""

    step: int
    reason: Literal["done", "interrupted"]


Event = StepDone | GaveWay | Compiling | Finished


@dataclass(frozen=True)
class TrainState:
    """All that a run needs to go on exactly: vectors and the optimizer's moments, and how far it is."""

    step: int
    micro_step: int
    vectors: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any] | None = None
    average: dict[str, Tensor] = field(default_factory=dict)  # of the vectors, if one is kept


class Trainer:
    """Textual Inversion (arXiv:2208.01618): AdamW on the vectors of one embedding, everything else frozen.

    With a negative embedding, DreamArtist (arXiv:2211.11337): of both, and with guidance away from it inside the loss.
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
        self._learning_rate = Schedule.parse(config.learning_rate, config.max_steps)
        limit = "0" if config.clip_grad == "disabled" else config.clip_grad_limit  # what is not used need not be right
        self._clip_limit = Schedule.parse(limit, config.max_steps)
        self._words = {
            each.name: {
                encoder: vectors.to(model.device, torch.float32, copy=True).requires_grad_()
                for encoder, vectors in each.vectors.items()
            }
            for each in self._embeddings
        }
        self._parameters = [vectors for word in self._words.values() for vectors in word.values()]
        self._factors = (1.0, config.negative_lr)  # of the learning rate, by embedding
        rate = self._learning_rate.at(self.step + 1)
        self._optimizer = adamw([list(word.values()) for word in self._words.values()], rate)
        self._scaler = grad_scaler(model.device) if model.needs_loss_scaling else None
        self._average = MovingAverage(self._named(), config.ema_rate, config.ema_every) if config.ema_rate else None
        if state is not None:
            self._check_state(state)
            self._restore(state)
        self._good = self.state()
        self._gave_way: list[str] = []
        self.last_step = check_steps(embedding.name, self.step, config)

    @property
    def embedding_name(self) -> str:
        """Its word in prompts."""
        return self._embeddings[0].name

    @property
    def embedding(self) -> Embedding:
        """The embedding as it is now, on the CPU."""
        return self.embeddings[0]

    @property
    def embeddings(self) -> list[Embedding]:
        """It, and the negative one if there is one, as they are now, on the CPU."""
        return [each.with_vectors(_on_cpu(self._words[each.name]), self.step) for each in self._embeddings]

    @property
    def copies(self) -> list[Embedding]:
        """What a copy is made of now: the embeddings, and if one is kept the average of each, named NAME-ema."""
        if self._average is None:
            return self.embeddings
        averaged = [
            replace(each, name=averaged_name(each.name)).with_vectors(
                _on_cpu({encoder: self._average.vectors[prefix + encoder] for encoder in each.vectors}), self.step
            )
            for prefix, each in zip(PREFIXES, self._embeddings, strict=False)
        ]
        return [*self.embeddings, *averaged]

    def state(self) -> TrainState:
        """A copy of all that changes during a run."""
        vectors = {key: each.detach().clone() for key, each in self._named().items()}
        scaler = None if self._scaler is None else self._scaler.state_dict()
        average = {} if self._average is None else {key: each.clone() for key, each in self._average.vectors.items()}
        optimizer = copy.deepcopy(self._optimizer.state_dict())
        return TrainState(self.step, self.micro_step, vectors, optimizer, scaler, average)

    def run(self, should_stop: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        """Train to the end, an event after every update; TrainingError, with the last good vectors, if it cannot go well.

        Of several processes each gets the same events, stops after the same update and fails alike.
        """
        batches = _some_ahead(self._own_batches())
        unchecked: list[Tensor] = []
        checked_once = False
        with self.model.training():
            while self.step < self.last_step and not self._processes.any(should_stop):
                rate = self._learning_rate.at(self.step + 1)
                loss, prompts, updated = self._update(batches, rate, should_stop)
                if not updated:
                    continue
                unchecked.append(loss)
                if len(unchecked) == CHECK_EVERY or self.step == self.last_step:
                    self._check_losses(unchecked)
                    self._check_scale()
                    if not checked_once:
                        self._check_learning()
                    checked_once = True
                    self._good = self.state()
                    unchecked.clear()
                epoch, epoch_step = divmod(self.micro_step * self.config.batch_size, self.dataset.epoch_length)
                yield StepDone(self.step, epoch, epoch_step, loss, rate, prompts)
                while self._gave_way:
                    yield GaveWay(self.step, self._gave_way.pop(0))
            if unchecked:
                self._check_losses(unchecked)
        yield Finished(self.step, "done" if self.step >= self.last_step else "interrupted")

    def make_finite(self) -> None:
        """After any end of a run: if the vectors are no numbers any more, or may be wrong, go back to the last good ones."""
        if self._processes.spoiled or not self.is_finite():
            self._restore(self._good)

    def is_finite(self) -> bool:
        """Whether the vectors are numbers still; waits for the device."""
        return all(bool(each.isfinite().all()) for each in self._parameters)

    def _own_batches(self) -> Iterator[Batch]:
        """From here on, those that this process makes."""
        micro_steps = self.config.gradient_accumulation_steps
        mine = self._processes.share(micro_steps)
        return self.dataset.batches(self.config.batch_size, self.micro_step, lambda number: number % micro_steps in mine)

    def _update(
        self, batches: Iterator[Batch], rate: float, should_stop: Callable[[], bool]
    ) -> tuple[Tensor, tuple[str, ...], bool]:
        """One update; returns its loss, its last prompts and whether it was made: fp16's first ones often overflow."""
        micro_steps = self.config.gradient_accumulation_steps
        update = Sum(self._processes, self._parameters, micro_steps)
        for index in update.mine:
            batch = next(batches)
            update.add(index, *self._gradients(batch, micro_steps))
        total = update.total(should_stop)
        for group, factor in zip(self._optimizer.param_groups, self._factors, strict=False):
            group["lr"] = rate * factor
        clip, limit = self.config.clip_grad, self._clip_limit.at(self.step + 1)
        ask = self.micro_step < SCALE_SETTLES * micro_steps
        updated = optimizer_step(self._optimizer, self._parameters, self._scaler, clip, limit, ask=ask)
        self.step, self.micro_step = self.step + updated, self.micro_step + micro_steps
        if updated and self._average is not None:
            self._average.update(self.step)
        if not updated:
            self._check_scale()
        return total, batch.prompts, updated

    def _gradients(self, batch: Batch, micro_steps: int) -> tuple[Tensor, Sequence[Tensor]]:
        """A batch's part of the update's loss, and of its gradients; once more if the model can give way where it failed."""
        while True:
            try:
                loss = training_loss(self.model, batch, self._words, self.scale, self._pixel_loss).mean() / micro_steps
                scaled = loss if self._scaler is None else self._scaler.scale(loss)
                # At once or not at all: half of them must not be added up when it is made once more.
                return loss.detach(), torch.autograd.grad(
                    scaled, self._parameters, allow_unused=True, materialize_grads=True
                )
            except Exception as error:  # noqa: PERF203 - a compiler raises anything
                traceback.clear_frames(error.__traceback__)  # they hold the memory that is to be freed
                if not (words := self.model.give_way(error)):
                    raise
                self._gave_way.append(words)

    def _check_scale(self) -> None:
        """Raise TrainingError if fp16's gradients overflow however little they are scaled."""
        if self._scaler is not None and self._scaler.get_scale() < 1:
            message = f"Gradients overflow in fp16 (step {self.step}): use precision bf16 or fp32."
            raise TrainingError(message)

    def _check_losses(self, losses: list[Tensor]) -> None:
        """Raise TrainingError, the vectors being the last good ones, if a loss is not finite."""
        if bool(torch.stack(losses).isfinite().all()) and self.is_finite():
            return
        step = self.step
        self._restore(self._good)
        message = (
            f"The loss is not a finite number any more (step {step}); the vectors are back at step {self.step}. "
            "Lower the learning rate or clip gradients; if this is the beginning, use precision fp32."
        )
        raise TrainingError(message)

    def _check_learning(self) -> None:
        """Raise TrainingError if the first steps changed nothing: hours of nothing may follow."""
        if any(not torch.equal(each.detach(), self._good.vectors[key]) for key, each in self._named().items()):
            return
        steps = self.step - self._good.step
        message = f"After {steps} steps the vectors have not moved: raise the learning rate."
        if not any(bool(moments["exp_avg_sq"].any()) for moments in self._optimizer.state.values()):
            message = (
                f"After {steps} steps no gradient reaches the vectors, so nothing would be learned: check that the word "
                "stands in the prompts, and use precision fp32."
            )
        raise TrainingError(message)

    def _named(self) -> dict[str, Tensor]:
        """All vectors by the names that they have in a state."""
        return {
            prefix + encoder: vectors
            for prefix, word in zip(PREFIXES, self._words.values(), strict=False)
            for encoder, vectors in word.items()
        }

    def _check_state(self, state: TrainState) -> None:
        found = {key: tuple(vectors.shape) for key, vectors in state.vectors.items()}
        expected = {key: tuple(vectors.shape) for key, vectors in self._named().items()}
        if found != expected:
            message = (
                f"The saved state of {self.embedding_name!r} has vectors of shape {found} and the embedding {expected}: it "
                "was made anew meanwhile, or is trained with or without its negative now. Train it without --resume."
            )
            raise TrainingError(message)

    def _restore(self, state: TrainState) -> None:
        self.step, self.micro_step = state.step, state.micro_step
        with torch.no_grad():
            for key, vectors in self._named().items():
                vectors.copy_(state.vectors[key])
        if self._average is not None:
            self._average.restore(state.average)
        groups = self._optimizer.state_dict()["param_groups"]  # a file's would bring its learning rate and weight decay
        self._optimizer.load_state_dict({"state": copy.deepcopy(state.optimizer["state"]), "param_groups": groups})
        if self._scaler is not None and state.scaler is not None:
            self._scaler.load_state_dict(state.scaler)


def _on_cpu(vectors: Vectors) -> dict[str, Tensor]:
    return {encoder: each.detach().to("cpu", copy=True) for encoder, each in vectors.items()}


def check_steps(name: str, step: int, config: TrainConfig) -> int:
    """The step after which a run is over; ConfigError if an embedding that is at `step` is there already."""
    last_step = min(config.max_steps, Schedule.parse(config.learning_rate, config.max_steps).last_step)
    if step >= last_step:
        message = (
            f"{name!r} has been trained for {step} steps already and this run ends at {last_step}: raise max steps, or the "
            "steps of the learning rate schedule, or create it anew."
        )
        raise ConfigError(message, "max_steps")
    return last_step


def _some_ahead(batches: Iterator[Batch], count: int = 8) -> Iterator[Batch]:
    """The same batches, drawn several at a time: between steps the caches are full of the network, and drawing is slow."""
    while some := list(islice(batches, count)):
        yield from some
