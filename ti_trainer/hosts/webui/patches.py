"""What is changed in somebody else's network for a while: each of these gives back what it took, on errors too.

Knows no host by name and no training.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ti_trainer.offload.streaming import Change, attributes


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """No weight requires a gradient, and every module is in eval mode."""
    thawed = [each for each in network.parameters() if each.requires_grad]
    with attributes([(module, "training", False) for module in network.modules() if module.training]):
        try:
            for each in thawed:
                each.requires_grad_(False)
            yield
        finally:
            for each in thawed:
                each.requires_grad_()


@contextmanager
def placed(module: nn.Module, device: torch.device) -> Iterator[None]:
    """The module's weights are on the device; afterwards they are where the first of them was."""
    before = next(module.parameters()).device
    try:
        module.to(device)
        yield
    finally:
        module.to(before)


@contextmanager
def typed(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """The module's weights are of this type; afterwards of what the first of them was. For a wider type than that."""
    before = next(module.parameters()).dtype
    try:
        module.to(dtype)
        yield
    finally:
        module.to(before)


@contextmanager
def channels_last(network: nn.Module) -> Iterator[None]:
    """Convolutions' weights lie as their kernels read them: otherwise most of a step goes into copying them, on a CPU."""
    layout = torch.channels_last
    weights = [(each, each.stride()) for each in network.parameters() if each.ndim == 4]
    moved = [(each, strides) for each, strides in weights if not each.is_contiguous(memory_format=layout)]
    try:
        for each, _ in moved:
            each.data = each.data.contiguous(memory_format=layout)
        yield
    finally:
        for each, strides in moved:
            before = torch.empty_strided(each.shape, strides, dtype=each.dtype, device=each.device)
            each.data = before.copy_(each.data)


@contextmanager
def without_hooks(network: nn.Module, name: str) -> Iterator[None]:
    """The forward pre-hooks of this name do not act; others stay, and so does everybody's order."""
    taken = []
    for module in network.modules():
        hooks = module._forward_pre_hooks
        named = [key for key, hook in hooks.items() if getattr(hook, "__name__", "") == name]
        if named:
            taken.append((hooks, dict(hooks)))
            for key in named:
                del hooks[key]
    try:
        yield
    finally:
        for hooks, before in taken:
            added = {key: hook for key, hook in hooks.items() if key not in before}
            hooks.clear()
            hooks.update(before | added)


def plain(network: nn.Module, *, fp32_attention: bool = False) -> Iterator[Change]:
    """What makes a U-Net or VAE compute as it was published, whatever the classes of its parts were patched with.

    Cross attention by torch itself, which every gradient passes, and without hypernetworks; nothing is computed twice
    (checkpointing saves memory that frozen weights do not take); images do not tile. Methods, since with those what was
    compiled stays valid when they are lent back and set again.
    """
    for module in network.modules():
        if all(hasattr(module, name) for name in ("to_q", "to_k", "to_v", "to_out", "heads")):
            yield module, "forward", MethodType(_attend_fp32 if fp32_attention else _attend, module)
        elif all(hasattr(module, name) for name in ("norm", "q", "k", "v", "proj_out")):
            yield module, "forward", MethodType(_attend_places, module)
        if vars(module).get("padding_mode") == "circular":
            yield module, "padding_mode", "zeros"
        for flag in ("checkpoint", "use_checkpoint"):
            if vars(module).get(flag) is True:
                yield module, flag, False


def timesteps_on_device(unet: nn.Module) -> Iterator[Change]:
    """What embeds timesteps in the original code begins on the CPU, which then waits for the GPU: in each step."""
    for kind in type(unet).__mro__:
        module = sys.modules[kind.__module__]
        if "timestep_embedding" in vars(module):
            yield module, "timestep_embedding", _embed_timesteps
            return


def _embed_timesteps(timesteps: Tensor, dim: int, max_period: float = 10000, repeat_only: bool = False) -> Tensor:
    """(B,) -> (B, dim), of the timesteps' type: cosines and sines of falling frequencies, as in arXiv:1706.03762."""
    if repeat_only:
        return timesteps[:, None].expand(-1, dim)
    half = dim // 2
    falling = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps[:, None].float() * (-math.log(max_period) * falling).exp()
    return F.pad(torch.cat([angles.cos(), angles.sin()], 1), (0, dim % 2)).to(timesteps.dtype)


def _attend_places(block: Any, x: Tensor) -> Tensor:
    """A VAE's attention, (B, C, H, W) -> (B, C, H, W)."""
    normed = block.norm(x)
    query, key, value = (
        layer(normed).flatten(2).transpose(1, 2)[:, None] for layer in (block.q, block.k, block.v)
    )  # (B, 1, H W, C)
    found = F.scaled_dot_product_attention(query, key, value)[:, 0]
    return x + block.proj_out(found.transpose(1, 2).reshape(x.shape))


def _attend(
    layer: Any, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None, *, fp32: bool = False, **_: Any
) -> Tensor:
    """(B, N, width) -> (B, N, width); context (B, T, context width), mask (B, T). What else there may be is for videos.

    With `fp32` the scores are not those of half precision, which overflows at 65504.
    """
    context = x if context is None else context
    query, key, value = (
        each.unflatten(-1, (layer.heads, -1)).transpose(1, 2)  # (B, heads, N or T, width / heads)
        for each in (layer.to_q(x), layer.to_k(context), layer.to_v(context))
    )
    own = value.dtype
    if fp32:
        query, key, value = query.float(), key.float(), value.float()
    seen = None if mask is None else mask.flatten(1)[:, None, None]
    # Autocast would bring them back to half precision; on a CPU the host never has it.
    with torch.autocast("cuda", enabled=False) if fp32 and torch.is_autocast_enabled() else nullcontext():
        found = F.scaled_dot_product_attention(query, key, value, seen).to(own)
    return layer.to_out(found.transpose(1, 2).flatten(2))


def _attend_fp32(layer: Any, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None, **_: Any) -> Tensor:
    return _attend(layer, x, context, mask, fp32=True)
