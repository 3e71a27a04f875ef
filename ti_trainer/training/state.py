"""What a run needs to go on exactly. Knows no file and no model."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ti_trainer.errors import TrainingError


@dataclass(frozen=True)
class Standing:
    """How a trial stands beside the others: the validation loss that was measured last, at which step.

    `aside_at` is the step that its vectors are at if it went wrong and does not take part any more.
    """

    init_text: str | None = None
    loss: float | None = None
    measured_at: int | None = None
    aside_at: int | None = None

    @property
    def rank(self) -> float:
        """The lowest is the best; that of what was not measured, or is no number, is none."""
        return math.inf if self.loss is None or math.isnan(self.loss) else self.loss


@dataclass(frozen=True)
class TrainState:
    """All that a run needs to go on exactly: vectors and the optimizer's moments, and how far it is.

    From the second trial on, names of vectors and averages start with `prefix`, and moments follow those of the trial
    before; there are standings only for more than one trial.
    """

    step: int
    micro_step: int
    vectors: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any] | None = None
    average: dict[str, Tensor] = field(default_factory=dict)  # of the vectors, if one is kept
    standings: tuple[Standing, ...] = ()

    @property
    def trials(self) -> int:
        """How many it is of."""
        return len({key.split(".")[0] for key in self.vectors if key.startswith("trial")}) + 1


def prefix(number: int) -> str:
    """Of the names of a trial's vectors in a state."""
    return "" if number == 1 else f"trial{number}."


def for_trials(state: TrainState, count: int) -> TrainState:
    """The state of a single word, as one of so many trials that all begin there."""
    moments, width = state.optimizer["state"], len(state.vectors)
    return replace(
        state,
        vectors={prefix(number + 1) + key: each for number in range(count) for key, each in state.vectors.items()},
        optimizer={"state": {number * width + index: each for number in range(count) for index, each in moments.items()}},
    )


def check_moved(before: TrainState, now: TrainState) -> None:
    """Raise TrainingError if the first steps changed nothing: hours of nothing may follow."""
    if any(not torch.equal(vectors, before.vectors[key]) for key, vectors in now.vectors.items()):
        return
    steps = now.step - before.step
    message = f"After {steps} steps the vectors have not moved: raise the learning rate."
    # What an optimizer remembers of each number is made of gradients, whichever it is; its counters are no such thing.
    memories = [each for moments in now.optimizer["state"].values() for each in moments.values()]
    memories = [each for each in memories if isinstance(each, Tensor) and each.ndim and each.is_floating_point()]
    if memories and not any(bool(each.any()) for each in memories):
        message = (
            f"After {steps} steps no gradient reaches the vectors, so nothing would be learned: check that the word "
            "stands in the prompts, and use precision fp32."
        )
    raise TrainingError(message)
