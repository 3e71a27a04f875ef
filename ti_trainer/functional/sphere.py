"""Gradient descent on the direction of vectors, at a fixed norm.

After Directional Textual Inversion (arXiv:2512.13672), without its prior.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

TINY = 1e-8  # added to the norm of the gradient, so that a gradient of zero moves nothing


class Sphere(torch.optim.Optimizer):
    """Each update turns every row of the parameters (V, D) by the learning rate, in radians, against its gradient.

    Only the direction of the gradient counts, so clipping it has no effect. Each parameter keeps the mean norm of its rows
    at construction; `norms` in its group holds it, and is saved and restored with the state.
    """

    _step_supports_amp_scaling = True  # a GradScaler then leaves skipping an update to `step`, and does not read the device

    def __init__(self, groups: list[dict[str, Any]], learning_rate: float) -> None:
        groups = [{**group, "norms": [_mean_norm(each) for each in group["params"]]} for group in groups]
        super().__init__(groups, {"lr": learning_rate})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient, unless a GradScaler found an overflow; closures are not supported."""
        overflow = getattr(self, "found_inf", None)  # set by the scaler; above 0 if a gradient is not finite
        for group in self.param_groups:
            for vectors, norm in zip(group["params"], group["norms"], strict=True):
                if vectors.grad is not None:
                    unit = normalize(vectors, dim=1)  # (V, D)
                    gradient = norm * vectors.grad
                    gradient = gradient - (gradient * unit).sum(1, keepdim=True) * unit  # tangent to the sphere
                    gradient = gradient / (gradient.norm(dim=1, keepdim=True) + TINY)
                    turned = norm * normalize(unit - group["lr"] * gradient, dim=1)
                    vectors.copy_(turned if overflow is None else torch.where(overflow > 0, vectors, turned))


def on_sphere(vectors: Tensor, norm: float, seed: int = 0) -> Tensor:
    """The rows of (V, D) scaled to a norm; rows of zeros, which have no direction, get a random one."""
    random = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(seed)).to(vectors)
    return norm * normalize(torch.where(vectors.any(1, keepdim=True), vectors, random), dim=1)


def _mean_norm(vectors: Tensor) -> float:
    return float(vectors.detach().norm(dim=-1).mean())
