"""Everything that a run needs to resume exactly, and its form as tensors and JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ti_trainer.errors import TrainingError
from ti_trainer.training.early_stopping import Best


@dataclass(frozen=True)
class TrialStatus:
    """A trial's last measured validation loss, at which step, and the step that it was stopped at, if it was."""

    init_text: str | None = None
    validation_loss: float | None = None
    measured_at: int | None = None
    stopped_at: int | None = None

    @property
    def rank(self) -> float:
        """Sorts the best trial first; a loss that was not measured or is NaN comes last."""
        loss = self.validation_loss
        return math.inf if loss is None or math.isnan(loss) else loss


@dataclass(frozen=True)
class TrainState:
    """Vectors, optimizers and counters of a run.

    Names of vectors and averages start with `prefix` of their trial. There is one optimizer state dict for each trial, and
    a status for each where there are several. `best` is there once a run with early stopping has been measured.
    """

    step: int
    micro_step: int
    vectors: dict[str, Tensor]
    optimizers: tuple[dict[str, Any], ...]
    scaler: dict[str, Any] | None = None
    average: dict[str, Tensor] = field(default_factory=dict)
    trials: tuple[TrialStatus, ...] = ()
    best: Best | None = None

    @property
    def num_trials(self) -> int:
        """How many trials the state is of."""
        return len({key.split(".")[0] for key in self.vectors if key.startswith("trial")}) + 1

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The state as named tensors and a JSON object, which holds everything that is no tensor."""
        tensors = {f"vectors.{key}": each.cpu() for key, each in self.vectors.items()}
        tensors |= {f"average.{key}": each.cpu() for key, each in self.average.items()}
        packed = [_pack(each, f"optimizer.{number}", tensors) for number, each in enumerate(self.optimizers, 1)]
        counts = {"step": self.step, "micro_step": self.micro_step, "scaler": self.scaler, "optimizers": packed}
        if self.best is not None:
            tensors |= {f"best.{key}": each.cpu() for key, each in self.best.vectors.items()}
            counts["best"] = {name: getattr(self.best, name) for name in ("step", "loss", "improved_at", "target", "later")}
        return tensors, {**counts, "trials": [asdict(each) for each in self.trials]}

    @classmethod
    def unpack(cls, tensors: Mapping[str, Tensor], counts: Mapping[str, Any]) -> TrainState:
        """Read what `pack` returned; KeyError, TypeError or ValueError if it is damaged."""
        vectors, average, best = (
            {key.removeprefix(kind): each for key, each in tensors.items() if key.startswith(kind)}
            for kind in ("vectors.", "average.", "best.")
        )
        state = cls(
            counts["step"],
            counts["micro_step"],
            vectors,
            tuple(_unpack(each, tensors) for each in counts["optimizers"]),
            counts["scaler"],
            average,
            tuple(TrialStatus(**each) for each in counts["trials"]),
            Best(**{**counts["best"], "later": tuple(counts["best"]["later"])}, vectors=best) if "best" in counts else None,
        )
        for each in state.optimizers:
            if not all(isinstance(part, kind) for part, kind in ((each["state"], dict), (each["param_groups"], list))):
                message = "an optimizer's state is damaged"
                raise TypeError(message)
        if len(state.optimizers) != state.num_trials:
            message = f"found {len(state.optimizers)} optimizers for {state.num_trials} trials"
            raise ValueError(message)
        return state


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON; tensors are moved to `tensors` and replaced by their names."""
    if isinstance(value, Tensor):
        tensors[name] = value.cpu().contiguous()
        return {"tensor": name}
    if isinstance(value, dict):  # as pairs, since keys of JSON objects are always texts
        return {"dict": [[key, _pack(each, f"{name}.{key}", tensors)] for key, each in value.items()]}
    if isinstance(value, list | tuple):
        packed = [_pack(each, f"{name}.{index}", tensors) for index, each in enumerate(value)]
        return {"tuple": packed} if isinstance(value, tuple) else packed
    return value


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(each, tensors) for each in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unpack(each, tensors) for key, each in content}
    if kind == "tuple":
        return tuple(_unpack(each, tensors) for each in content)
    message = f"found {kind!r} in the optimizer's state"
    raise ValueError(message)


def prefix(trial: int) -> str:
    """Start of the names of a trial's vectors in a state."""
    return "" if trial == 1 else f"trial{trial}."


def for_trials(state: TrainState, count: int) -> TrainState:
    """The state of a run without trials as that of `count` trials that all start from it."""
    vectors = {prefix(number + 1) + key: each for number in range(count) for key, each in state.vectors.items()}
    return replace(state, vectors=vectors, optimizers=state.optimizers * count)


def check_moved(before: TrainState, now: TrainState) -> None:
    """Raise TrainingError if no vector has changed, before hours are spent on learning nothing."""
    if any(not torch.equal(vectors, before.vectors[key]) for key, vectors in now.vectors.items()):
        return
    steps = now.step - before.step
    message = f"After {steps} steps the vectors have not moved: raise the learning rate."
    # Whatever the optimizer, what it keeps for each number is made from gradients. Its counters are single numbers.
    kept = [each for optimizer in now.optimizers for values in optimizer["state"].values() for each in values.values()]
    kept = [each for each in kept if isinstance(each, Tensor) and each.ndim and each.is_floating_point()]
    if kept and not any(bool(each.any()) for each in kept):
        message = (
            f"After {steps} steps no gradient reaches the vectors, so nothing would be learned: check that the word is "
            "in the prompts, and compute in fp32."
        )
    raise TrainingError(message)
