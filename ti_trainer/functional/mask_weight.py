"""How much each position of an image counts in the loss, from its mask.

C latent channels, H W latent height and width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def attention(grey: Tensor) -> Tensor:
    """DreamArtist's weights for grey values 0 to 255: 0 to 1 up to the middle, 1 to 5 above it."""
    return torch.where(grey <= 127, grey / 127, 1 + 4 * (grey - 127) / 128)


def mask_weight(
    counts: Tensor, latents: Tensor, outside: float = 0.0, *, normalize: bool = True, is_alpha: bool = False
) -> Tensor:
    """Weights (1, H, W), at least `outside`, from a mask or alpha channel (1, 8 H, 8 W) for latents (C, H, W).

    Normalized weights have mean 1, so that an image with a small mask counts as much as any other. Where `outside` is 0,
    the lowest alpha counts as 0 and a constant alpha channel as no mask, as in the WebUI. An empty mask marks everything as
    outside.
    """
    small = interpolate(counts[None].to(latents.device), latents.shape[-2:], mode="area")[0]  # (1, H, W)
    if is_alpha and normalize and not outside:
        small = small - small.min()
        small = small if small.any() else torch.ones_like(small)
    weight = small.clamp(min=outside)
    return weight / weight.mean() if normalize and small.any() else weight
