"""The components of a checkpoint after reading, whatever its layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ti_trainer.hosts.diffusers.library import (
    AutoencoderKL,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    DDPMScheduler,
    UNet2DConditionModel,
)
from ti_trainer.hosts.diffusers.text import TextEncoder


class Components(NamedTuple):
    """Networks as they were read, not yet on the device."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoders: Sequence[TextEncoder]
    scheduler: DDPMScheduler


def both_encoders(
    first: tuple[CLIPTextModel, CLIPTokenizer], second: tuple[CLIPTextModelWithProjection, CLIPTokenizer]
) -> list[TextEncoder]:
    """SDXL's text encoders: the second to last layer of each, not normalised (arXiv:2307.01952, table 1)."""
    return [TextEncoder(name, *each, layer=2, normalised=False) for name, each in (("clip_l", first), ("clip_g", second))]
