"""Temporary changes that make Forge's U-Net trainable: it is written for inference. This module does not import Forge's."""

from __future__ import annotations

from collections.abc import Iterator
from types import MethodType
from typing import Any

from torch import Tensor, nn

from ti_trainer.offload.patching import Change

NORMS = ("norm1", "norm2", "norm3")  # of a transformer block, which then adds to their input in place


def trainable_unet(unet: nn.Module) -> Iterator[Change]:
    """Changes for `patched`: no in-place addition changes what autograd has saved, and no call sees options of another.

    A transformer block adds to its input in place. With gradient checkpointing that input is what is saved, so the copy is
    made within the block, where it is computed again.
    """
    yield unet, "forward", MethodType(_with_own_options, unet)
    for module in unet.modules():
        if hasattr(module, "_forward") and all(isinstance(getattr(module, name, None), nn.Module) for name in NORMS):
            yield module, "_forward", MethodType(_on_a_copy, module)
            for name in NORMS:
                norm = getattr(module, name)
                yield norm, "forward", MethodType(_of_a_copy, norm)


def _with_own_options(unet: Any, x: Tensor, timesteps: Tensor, context: Tensor, y: Tensor | None = None) -> Tensor:
    """Forge's default for `transformer_options` is one dict for all calls, and is written to."""
    output: Tensor = type(unet).forward(unet, x, timesteps, context=context, y=y, transformer_options={})
    return output


def _on_a_copy(block: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    return type(block)._forward(block, x.clone(), *args, **kwargs)


def _of_a_copy(norm: Any, x: Tensor) -> Any:
    return type(norm).forward(norm, x.clone())
