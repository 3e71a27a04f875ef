"""How much the loss counts at each place of a picture, from the greys of its mask. Pure.

C latent channels, H W latent height and width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def attention(grey: Tensor) -> Tensor:
    """DreamArtist's weights of greys 0 to 255: up to the middle 0 to 1, above it 1 to 5."""
    return torch.where(grey <= 127, grey / 127, 1 + 4 * (grey - 127) / 128)


def mask_weight(counts: Tensor, latents: Tensor, outside: float = 0.0, *, normalize: bool = True) -> Tensor:
    """(1, H, W) from what a mask or alpha (1, 8 H, 8 W) counts, which is nowhere less than `outside`.

    Normalised it has mean 1, so that pictures with a small mask count as much as others, and is ones if it is the same
    everywhere; with nothing outside, the least counts for nothing, as in the WebUI.
    """
    small = interpolate(counts[None].to(latents.device), latents.shape[-2:], mode="area")[0]
    if normalize and not outside:
        small = small - small.min()
    small = small.clamp(min=outside)
    if not normalize:
        return small
    mean = small.mean()
    return small / mean if mean > 0 else torch.ones_like(small)
