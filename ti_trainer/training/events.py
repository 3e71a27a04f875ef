"""The events that a training yields: small, frozen, at least one after every update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class StepDone:
    """`step` updates are complete. The loss is the mean of the update's samples, still on the device.

    With several trials the loss is the mean of the active ones, and the learning rate is that of the best so far.
    """

    step: int
    epoch: int
    epoch_step: int
    loss: Tensor
    learning_rate: float
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class MemoryReduced:
    """A step failed and was repeated after the model gave something up, as `message` says. Training continues."""

    step: int
    message: str


@dataclass(frozen=True)
class TrialStopped:
    """Trial number `trial` was stopped because its loss or vectors were not finite. The other trials continue."""

    step: int
    trial: int
    message: str


@dataclass(frozen=True)
class Compiling:
    """The step after step `step` takes a minute or more, since the model is being compiled."""

    step: int


@dataclass(frozen=True)
class Fitting:
    """The vectors are fitted to the teacher's prompt before the step after `step`, which may take minutes."""

    step: int


@dataclass(frozen=True)
class Finished:
    """The last event of a run."""

    step: int
    reason: Literal["done", "interrupted"]


Event = StepDone | MemoryReduced | TrialStopped | Compiling | Fitting | Finished
