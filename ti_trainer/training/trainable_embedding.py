"""An embedding during training, with its negative embedding if any: vectors, optimizer and moving average."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ti_trainer.config.training import TrainConfig
from ti_trainer.config.trials import Trial
from ti_trainer.embedding import Embedding, averaged_name
from ti_trainer.functional.ema import MovingAverage
from ti_trainer.functional.optimizers import OPTIMIZERS
from ti_trainer.model import Vectors
from ti_trainer.training.state import TrainState, TrialStatus, prefix
from ti_trainer.training.step import optimizer_step

if TYPE_CHECKING:
    from torch.amp import GradScaler

NEGATIVE = "negative."  # starts the names of the negative embedding's vectors in a state
IMPLEMENTATION = ("fused", "foreach", "capturable", "differentiable")  # how a group is computed, not what was learned


class TrainableEmbedding:
    """One trial of a run. The vectors of each text encoder are (V, D) in fp32."""

    def __init__(
        self, trial: Trial, embeddings: Sequence[Embedding], config: TrainConfig, device: torch.device, spread: float = 1.0
    ) -> None:
        """Start at the vectors of the embedding and its negative, which keep their names in the prompts.

        `spread`: the standard deviation of the elements of the model's vocabulary.
        """
        self.trial, self.embeddings, self._config, self.spread = trial, tuple(embeddings), config, spread
        self.learning_rate = config.learning_rate_of(trial, spread)
        self.status = TrialStatus(self.embeddings[0].info.get("init_text"))
        self._factors = (1.0, config.negative_lr)  # of the learning rate, by embedding
        self._use(device)

    def _use(self, device: torch.device) -> None:
        """Make the vectors on a device, with an optimizer and a moving average of their own."""
        self.vectors: dict[str, dict[str, Tensor]] = {  # by the embedding's name, then by text encoder
            each.name: {
                encoder: vectors.to(device, torch.float32, copy=True).requires_grad_()
                for encoder, vectors in each.vectors.items()
            }
            for each in self.embeddings
        }
        self.parameters = [vectors for each in self.vectors.values() for vectors in each.values()]
        rate = self.learning_rate.unit * self.trial.learning_rate.at(1)
        groups = [
            {"params": list(each.values()), "lr": rate * factor}
            for each, factor in zip(self.vectors.values(), self._factors, strict=False)
        ]
        self.optimizer = OPTIMIZERS[self._config.optimizer](groups, rate)
        rate, every = self._config.ema_rate, self._config.ema_every
        self._average = MovingAverage(self.named(), rate, every) if rate else None

    def move_to_cpu(self, state: TrainState) -> None:
        """Restore a state on the CPU without reading from the device, which may have failed."""
        self._use(torch.device("cpu"))
        self.restore(state)

    def update(self, step: int, scaler: GradScaler | None, *, ask: bool = True) -> bool:
        """Make update number `step` from the gradients; False if they overflow and nothing was changed."""
        rate = self.learning_rate.at(step)
        for group, factor in zip(self.optimizer.param_groups, self._factors, strict=False):
            group["lr"] = rate * factor
        clip_grad, limit = self._config.clip_grad, self._config.clip_limit.at(step)
        updated = optimizer_step(self.optimizer, self.parameters, scaler, clip_grad, limit, ask=ask)
        if updated and self._average is not None:
            self._average.update(step)
        return updated

    def restart_average(self) -> None:
        """Begin the moving average at the vectors, which were changed other than by updates."""
        if self._average is not None:
            self._average.restore({})

    def is_finite(self) -> bool:
        """Whether all vectors are finite; waits for the device."""
        return all(bool(each.isfinite().all()) for each in self.parameters)

    def now(self, step: int) -> list[Embedding]:
        """The embedding, and its negative if any, as they are at `step`, on the CPU."""
        step = step if self.status.stopped_at is None else self.status.stopped_at
        pairs = zip(self.embeddings, self.vectors.values(), strict=True)
        return [embedding.with_vectors(_on_cpu(vectors), step) for embedding, vectors in pairs]

    def copies(self, step: int) -> list[Embedding]:
        """The same, followed by the moving average of each, named NAME-ema, if there is one."""
        embeddings = self.now(step)
        if self._average is None:
            return embeddings
        averaged = [
            replace(
                each,
                name=averaged_name(each.name),
                vectors=_on_cpu({encoder: self._average.vectors[start + encoder] for encoder in each.vectors}),
            )
            for start, each in zip(self._name_starts, embeddings, strict=False)
        ]
        return [*embeddings, *averaged]

    @property
    def _name_starts(self) -> tuple[str, str]:
        start = prefix(self.trial.number)
        return start, start + NEGATIVE

    def named(self) -> dict[str, Tensor]:
        """All vectors by their names in a state."""
        return {
            start + encoder: vectors
            for start, each in zip(self._name_starts, self.vectors.values(), strict=False)
            for encoder, vectors in each.items()
        }

    def averages(self) -> dict[str, Tensor]:
        """A copy of the moving averages by their names in a state; empty if there are none."""
        return {} if self._average is None else _on_cpu(self._average.vectors)

    def optimizer_state(self) -> dict[str, Any]:
        """A copy of all of the optimizer's state, parameter groups too, on the CPU."""
        copied: dict[str, Any] = _copied(self.optimizer.state_dict())
        return copied

    def restore(self, state: TrainState) -> None:
        """Continue from a state."""
        with torch.no_grad():
            for key, vectors in self.named().items():
                vectors.copy_(state.vectors[key])
        if self._average is not None:
            self._average.restore(state.average)
        saved, own = copy.deepcopy(state.optimizers[self.trial.stream]), self.optimizer.state_dict()["param_groups"]
        saved_groups = saved.get("param_groups") or [{} for _ in own]
        groups = [_merged(mine, theirs) for mine, theirs in zip(own, saved_groups, strict=True)]
        self.optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
        if state.trials:
            self.status = state.trials[self.trial.stream]


def _merged(own: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """A saved parameter group for this optimizer, which may run on another device or version of torch."""
    return {**own, **saved, **{key: own[key] for key in ("params", *IMPLEMENTATION) if key in own}}


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(each) for each in value)
    return copy.deepcopy(value)


def _on_cpu(vectors: Vectors) -> dict[str, Tensor]:
    return {encoder: each.detach().to("cpu", copy=True) for encoder, each in vectors.items()}
