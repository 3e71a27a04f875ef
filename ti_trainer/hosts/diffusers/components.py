"""What a checkpoint consists of once it is read, whatever layout it had."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ti_trainer.hosts.diffusers.text import TextEncoder


class Parts(NamedTuple):
    """Networks as they were read, not yet where they compute."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoders: Sequence[TextEncoder]
    scheduler: DDPMScheduler


def both_encoders(
    first: tuple[CLIPTextModel, CLIPTokenizer], second: tuple[CLIPTextModelWithProjection, CLIPTokenizer]
) -> list[TextEncoder]:
    """SDXL's: of both the last layer but one, not normalised (arXiv:2307.01952, table 1)."""
    return [TextEncoder(name, *each, layer=2, normalised=False) for name, each in (("clip_l", first), ("clip_g", second))]
