"""Temporary changes that make Forge's U-Net trainable: it is written for inference. This module does not import Forge's."""

from __future__ import annotations

from collections.abc import Iterator
from types import MethodType
from typing import Any

from torch import Tensor, nn

from ti_trainer.hosts.webui.patches import without_inplace_additions
from ti_trainer.offload.patching import Change


def trainable_unet(unet: nn.Module) -> Iterator[Change]:
    """Changes for `patched`: no call sees the options of another, and nothing that autograd has saved is changed."""
    yield unet, "forward", MethodType(_with_own_options, unet)
    yield from without_inplace_additions(unet)


def _with_own_options(unet: Any, x: Tensor, timesteps: Tensor, context: Tensor, y: Tensor | None = None) -> Tensor:
    """Forge's default for `transformer_options` is one dict for all calls, and is written to."""
    output: Tensor = type(unet).forward(unet, x, timesteps, context=context, y=y, transformer_options={})
    return output
