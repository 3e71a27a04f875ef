"""The losses and gradients of one batch, repeated with less memory where the device runs out of it."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from ti_trainer.config.training import TrainConfig
from ti_trainer.data.dataset import Batch
from ti_trainer.errors import TITrainerError, TrainingError
from ti_trainer.functional.guidance import GuidanceScale
from ti_trainer.functional.loss_weights import LOSS_WEIGHTINGS
from ti_trainer.functional.objective import PredictionType
from ti_trainer.model import DiffusionModel
from ti_trainer.offload.plan import ran_out
from ti_trainer.training.pixel_loss import PixelLoss
from ti_trainer.training.preservation import Preservation
from ti_trainer.training.step import training_loss
from ti_trainer.training.teacher import Teacher
from ti_trainer.training.trainable_embedding import TrainableEmbedding

if TYPE_CHECKING:
    from torch.amp import GradScaler

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Objective:
    """What a run minimizes. `scale`, `pixel_loss`, `weighting` and `teacher` as for `training_loss`.

    Without a teacher, `preservation` gives the targets.
    """

    model: DiffusionModel
    scale: GuidanceScale | None
    pixel_loss: PixelLoss | None
    weighting: Callable[[Tensor, PredictionType], Tensor] | None
    teacher: Teacher | None = None
    preservation: Preservation | None = None

    @classmethod
    def of(
        cls,
        config: TrainConfig,
        model: DiffusionModel,
        pixel_loss: PixelLoss | None,
        teacher: Teacher | None,
        preservation: Preservation | None,
        *,
        guided: bool,
    ) -> Objective:
        """The objective that the options of a run describe; `guided` with a negative embedding."""
        weighting = LOSS_WEIGHTINGS[config.loss_weighting]
        return cls(
            model,
            config.guidance_scale if guided else None,
            pixel_loss,
            None if weighting is None else partial(weighting, gamma=config.snr_gamma),
            teacher,
            preservation,
        )

    def gradients(
        self,
        trials: Sequence[TrainableEmbedding],
        batch: Batch,
        divisor: int,
        scaler: GradScaler | None,
        memory_reduced: Callable[[str], None],
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """The loss of each of N trials (N,), divided by `divisor`, and the gradient of each parameter, scaled.

        If that fails and the model can reduce its memory, `memory_reduced` gets a message and the batch is repeated.
        """
        fewer = "fewer trials or " if len(trials) > 1 else ""
        advice = f"use {fewer}a smaller batch size, width and height"
        compute = partial(self._gradients_once, trials, batch, divisor, scaler)
        return with_less_memory(self.model, compute, memory_reduced, advice)

    def _gradients_once(
        self, trials: Sequence[TrainableEmbedding], batch: Batch, divisor: int, scaler: GradScaler | None
    ) -> tuple[Tensor, Sequence[Tensor]]:
        embeddings = [each.vectors for each in trials]
        options = (self.scale, self.pixel_loss, self.weighting, self.teacher or self.preservation)
        loss = training_loss(self.model, batch, embeddings, *options)  # (N B,)
        losses = torch.stack([each.mean() for each in loss.chunk(len(trials))]) / divisor  # (N,)
        total = losses.sum()  # a trial's loss depends on its own vectors only
        scaled = total if scaler is None else scaler.scale(total)
        # All at once: if the batch is repeated, no gradient may have been added up already.
        gradients = torch.autograd.grad(scaled, parameters_of(trials), allow_unused=True, materialize_grads=True)
        return losses.detach(), [each.detach() for each in gradients]  # torch 2.1's zeros require gradients


def with_less_memory(
    model: DiffusionModel, compute: Callable[[], T], memory_reduced: Callable[[str], None], advice: str
) -> T:
    """The result of `compute`, repeated for as long as it fails and the model can reduce its memory.

    TrainingError with the advice if it cannot and memory ran out.
    """
    while True:
        try:
            return compute()
        except Exception as error:  # noqa: PERF203 - a compiler raises anything
            if isinstance(error, TITrainerError):
                raise
            traceback.clear_frames(error.__traceback__)  # they hold the memory that is to be freed
            if message := model.reduce_memory(error):
                log.debug("The step is repeated after this error:", exc_info=error)
                memory_reduced(message)
            elif ran_out(error):
                message = f"Memory ran out ({error}): {advice}."
                raise TrainingError(message) from error
            else:
                raise


def parameters_of(trials: Sequence[TrainableEmbedding]) -> list[Tensor]:
    """The vectors of all trials."""
    return [vectors for each in trials for vectors in each.parameters]
