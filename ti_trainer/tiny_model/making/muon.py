"""The Muon optimizer (Keller Jordan, 2024): momentum with orthogonalized update matrices.

Training the embedded model from scratch takes a third of Adam's steps. torch.optim.Muon does not support convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def orthogonalised(update: Tensor) -> Tensor:
    """An approximation of the nearest semi-orthogonal matrix: five Newton-Schulz iterations on (M, N)."""
    tall = update.shape[0] > update.shape[1]
    x = update.T if tall else update
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Muon for weights of two or more dimensions; convolutions are treated as (out, in * kernel) matrices."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One update."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalised(p.grad.lerp(buffer, group["momentum"]).flatten(1))
                p.add_(update.reshape(p.shape), alpha=-group["lr"] * 0.2 * math.sqrt(max(update.shape)))


class MuonAndAdam:
    """Muon for the matrices of a network and AdamW for its vectors and tables, with one cosine schedule."""

    def __init__(self, modules: Iterable[nn.Module], lr: float, adam_lr: float, tables: Iterable[nn.Parameter] = ()) -> None:
        tables = list(tables)
        rest = [p for m in modules for p in m.parameters() if p.requires_grad and not any(p is t for t in tables)]
        self.parts = [
            Muon([p for p in rest if p.ndim >= 2], lr),
            torch.optim.AdamW([*(p for p in rest if p.ndim < 2), *tables], adam_lr, betas=(0.9, 0.98), weight_decay=0),
        ]
        self.peaks = [lr, adam_lr]

    def step(self, done: float, warm: float = 1.0) -> None:
        """One update at the fraction `done` of the run, with the warm-up factor `warm`; clears the gradients."""
        for part, peak in zip(self.parts, self.peaks, strict=True):
            for group in part.param_groups:
                group["lr"] = peak * warm * max(0.005, 0.5 + 0.5 * math.cos(math.pi * min(1.0, done)))
            part.step()
            part.zero_grad()

    def state_dict(self) -> list[dict[str, Any]]:
        """The state of both optimizers."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Restore the state of both optimizers."""
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)
