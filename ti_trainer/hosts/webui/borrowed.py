"""What is changed in somebody else's network for a while: each of these gives back what it took, on errors too.

Knows no host by name and no training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_NOTHING = object()
Change = tuple[Any, str, Any]  # object, attribute, value


@contextmanager
def attributes(changes: Iterable[Change]) -> Iterator[None]:
    """Set attributes of objects; afterwards each has its own again, or none where it had none of its own."""
    before: list[Change] = []
    try:
        for thing, name, value in changes:
            before.append((thing, name, vars(thing).get(name, _NOTHING)))
            setattr(thing, name, value)
        yield
    finally:
        for thing, name, value in reversed(before):
            if value is not _NOTHING:
                setattr(thing, name, value)
            elif name in vars(thing):
                delattr(thing, name)


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


def plain(network: nn.Module) -> Iterator[Change]:
    """What makes a U-Net or VAE compute as it was published, whatever the classes of its parts were patched with.

    Cross attention by torch itself, which every gradient passes, and without hypernetworks; nothing is computed twice
    (checkpointing saves memory that frozen weights do not take); pictures do not tile.
    """
    for module in network.modules():
        if all(hasattr(module, name) for name in ("to_q", "to_k", "to_v", "to_out", "heads")):
            yield module, "forward", partial(_attend, module)
        if vars(module).get("padding_mode") == "circular":
            yield module, "padding_mode", "zeros"
        for flag in ("checkpoint", "use_checkpoint"):
            if vars(module).get(flag) is True:
                yield module, flag, False


def _attend(layer: Any, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """(B, N, width) -> (B, N, width); context (B, T, context width), mask (B, T)."""
    context = x if context is None else context
    query, key, value = (
        each.unflatten(-1, (layer.heads, -1)).transpose(1, 2)  # (B, heads, N or T, width / heads)
        for each in (layer.to_q(x), layer.to_k(context), layer.to_v(context))
    )
    seen = None if mask is None else mask.flatten(1)[:, None, None]
    return layer.to_out(F.scaled_dot_product_attention(query, key, value, seen).transpose(1, 2).flatten(2))
