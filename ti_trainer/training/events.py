"""What a training tells of itself as it goes on: small, frozen, one after every update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class StepDone:
    """`step` updates are complete. The loss is the mean of the update's samples, still on the device.

    Of several trials it is the mean of those that go on, and the learning rate that of the best so far.
    """

    step: int
    epoch: int
    epoch_step: int
    loss: Tensor
    learning_rate: float
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class GaveWay:
    """What was given up so that the run goes on at step `step`, in words.

    By the model, so that a step that had failed could be made after all; or a trial that went wrong, for the others.
    """

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
