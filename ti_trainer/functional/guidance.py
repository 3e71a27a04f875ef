"""Classifier-free guidance inside the loss, as in DreamArtist (arXiv:2211.11337).

B batch, C latent channels, H W latent height and width.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ti_trainer.errors import ConfigError
from ti_trainer.functional.numbers import plain

if TYPE_CHECKING:
    from torch import Tensor

SHAPES: dict[str, Callable[[Tensor], Tensor]] = {  # rise from 0 at the first timestep to 1 at the last
    "linear": lambda u: u,
    "ln": lambda u: u,  # DreamArtist's name for it
    "cos": lambda u: ((u - 1) * (math.pi / 2)).cos(),
    "cos2": lambda u: 1 - (u * (math.pi / 2)).cos(),
}
NUMBER = r"\d+\.?\d*|\.\d+"
MAX_SCALE = 30.0


@dataclass(frozen=True)
class GuidanceScale:
    """The CFG scale of each timestep, from `low` at the first to `high` at the last."""

    low: float
    high: float
    shape: str = "linear"

    @classmethod
    def parse(cls, text: str) -> GuidanceScale:
        """Parse a number, or LO-HI:shape such as 1.5-3:cos; ConfigError for anything else."""
        text = plain(text)
        if "," in text:
            message = (
                f"CFG scale in training (train_cfg_scale): found {text!r}, expected a decimal point in numbers, not ','."
            )
            raise ConfigError(message, "train_cfg_scale")
        found = re.fullmatch(rf"\s*({NUMBER})(?:\s*-\s*({NUMBER})\s*(?::\s*(\w+)\s*)?)?\s*", text)
        low, high, shape = found.groups() if found else (None, None, None)
        shape = shape or "linear"
        if low is None or shape not in SHAPES or not max(float(low), float(high or low)) <= MAX_SCALE:
            message = (
                f"CFG scale in training (train_cfg_scale): found {text!r}, expected a number such as 3, or LO-HI:shape such "
                f"as 1.5-3:cos, up to {MAX_SCALE:g}; shapes are {', '.join(SHAPES)}."
            )
            raise ConfigError(message, "train_cfg_scale")
        return cls(float(low), float(high or low), shape)

    def at(self, timesteps: Tensor, num_timesteps: int) -> Tensor:
        """The scale of each sample (B,), by its timestep (B,)."""
        progress = SHAPES[self.shape](timesteps / (num_timesteps - 1))
        return self.low + (self.high - self.low) * progress


def guided(negative: Tensor, positive: Tensor, scale: Tensor) -> Tensor:
    """The guided prediction (B, C, H, W): from the negative prompt's to the positive prompt's, by scale (B,)."""
    return negative + scale[:, None, None, None] * (positive - negative)
