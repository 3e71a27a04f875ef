"""Masks: grey pictures that say how much each place of another picture counts. Where they lie and what their greys mean.

C latent channels, H W latent height and width.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ti_trainer.data.pictures import MASKS, is_image
from ti_trainer.errors import DatasetError


def find_masks(folder: Path) -> dict[str, Path]:
    """The pictures of a folder of masks, by the stems of those that they belong to; DatasetError if there is no folder."""
    if not folder.is_dir():
        message = f"The mask directory {folder} does not exist: name a folder with a grey picture for each picture."
        raise DatasetError(message)
    return {path.stem: path for path in sorted(folder.iterdir(), reverse=True) if is_image(path)}


def masks_beside(folder: Path) -> dict[str, Path]:
    """The masks among the pictures of a folder, a_att.png and a-masklabel.png, by the stems of those that they belong to."""
    if not folder.is_dir():
        return {}
    files = sorted(path for path in folder.iterdir() if is_image(path))
    stems = {path.stem for path in files}
    named = [(path, mask) for mask in reversed(MASKS) for path in files if path.stem.endswith(mask)]
    found = {path.stem.removesuffix(mask): path for path, mask in named}
    return {stem: path for stem, path in found.items() if stem in stems}


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
