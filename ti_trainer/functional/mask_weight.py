"""How much the loss counts at each place of an image, from the greys of its mask. Pure.

C latent channels, H W latent height and width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def attention(grey: Tensor) -> Tensor:
    """DreamArtist's weights of greys 0 to 255: up to the middle 0 to 1, above it 1 to 5."""
    return torch.where(grey <= 127, grey / 127, 1 + 4 * (grey - 127) / 128)


def mask_weight(
    counts: Tensor, latents: Tensor, outside: float = 0.0, *, normalize: bool = True, is_alpha: bool = False
) -> Tensor:
    """(1, H, W) from what a mask or alpha (1, 8 H, 8 W) counts, which is nowhere less than `outside`.

    Normalised it has mean 1, so that images with a small mask count as much as others. With nothing outside, the least
    alpha counts for nothing, and one that is the same everywhere is none, as in the WebUI. Where a mask marks nothing, all
    is outside.
    """
    small = interpolate(counts[None].to(latents.device), latents.shape[-2:], mode="area")[0]
    if is_alpha and normalize and not outside:
        small = small - small.min()
        small = small if small.any() else torch.ones_like(small)
    weight = small.clamp(min=outside)
    return weight / weight.mean() if normalize and small.any() else weight
