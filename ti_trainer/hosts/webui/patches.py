"""Temporary changes to a network that belongs to the host; each context manager undoes its own, also after an error."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ti_trainer.offload.patching import Change, patched

NORMS = ("norm1", "norm2", "norm3")  # of a transformer block


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Within it no weight requires a gradient, and every module is in eval mode."""
    trainable = [each for each in network.parameters() if each.requires_grad]
    with patched([(module, "training", False) for module in network.modules() if module.training]):
        try:
            for each in trainable:
                each.requires_grad_(False)
            yield
        finally:
            for each in trainable:
                each.requires_grad_()


def replace_inference_tensors(network: nn.Module) -> None:
    """Replace weights and buffers that were made in inference mode by equal ones, as autograd cannot save those.

    They stay replaced: for the host nothing changes. Not `each.data = ...`, after which they would have no version counter.
    """
    replaced: dict[int, tuple[Tensor, Tensor]] = {}  # keeps the old ones alive, so that no id is used twice

    def ordinary(old: Tensor) -> Tensor:
        if id(old) not in replaced:
            new = old.detach().clone()
            if isinstance(old, nn.Parameter):
                new = nn.Parameter(new, requires_grad=old.requires_grad and new.is_floating_point())
            vars(new).update(vars(old))
            replaced[id(old)] = old, new
        return replaced[id(old)][1]

    for module in network.modules():
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for tensors in tables:
            for name, each in tensors.items():
                if each is not None and each.is_inference():
                    tensors[name] = ordinary(each)


@contextmanager
def cast_to(dtype: torch.dtype, module: nn.Module) -> Iterator[None]:
    """Cast a module's weights to a wider dtype, and afterwards back to that of the first of them."""
    before = next(module.parameters()).dtype
    try:
        module.to(dtype)
        yield
    finally:
        module.to(before)


@contextmanager
def channels_last(network: nn.Module) -> Iterator[None]:
    """Convolution weights in channels-last layout; on a CPU, most of a step would otherwise be spent copying them."""
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
    """Disable the forward pre-hooks of this name. The others stay, and the order of all is restored."""
    removed = []
    for module in network.modules():
        hooks = module._forward_pre_hooks
        named = [key for key, hook in hooks.items() if getattr(hook, "__name__", "") == name]
        if named:
            removed.append((hooks, dict(hooks)))
            for key in named:
                del hooks[key]
    try:
        yield
    finally:
        for hooks, before in removed:
            added = {key: hook for key, hook in hooks.items() if key not in before}
            hooks.clear()
            hooks.update(before | added)


def without_host_patches(network: nn.Module, *, fp32_attention: bool = False) -> Iterator[Change]:
    """Changes for `patched` that make a U-Net or VAE compute as published, whatever the host patched into its classes.

    Cross-attention is torch's, which is differentiable in all inputs, and without hypernetworks. The network's own gradient
    checkpointing is off: it needs gradients of the weights, which are frozen. Images do not tile. The new `forward`s are
    bound methods, because with those compiled code stays valid when the changes are undone and made again.
    """
    for module in network.modules():
        if all(hasattr(module, name) for name in ("to_q", "to_k", "to_v", "to_out", "heads")):
            yield module, "forward", MethodType(_attend_fp32 if fp32_attention else _attend, module)
        elif all(hasattr(module, name) for name in ("norm", "q", "k", "v", "proj_out")):
            yield module, "forward", MethodType(_attend_in_vae, module)
        if vars(module).get("padding_mode") == "circular":
            yield module, "padding_mode", "zeros"
        for flag in ("checkpoint", "use_checkpoint"):
            if vars(module).get(flag) is True:
                yield module, flag, False


def without_inplace_additions(unet: nn.Module) -> Iterator[Change]:
    """Changes for `patched`: no in-place addition changes what autograd has saved. Forge and Forge Classic need them.

    Their transformer blocks add to their input in place, which is also what gradient checkpointing saves. So the copy is
    made within the block, where it is computed again.
    """
    for module in unet.modules():
        if hasattr(module, "_forward") and all(isinstance(getattr(module, name, None), nn.Module) for name in NORMS):
            yield module, "_forward", MethodType(_on_a_copy, module)
            for name in NORMS:
                norm = getattr(module, name)
                yield norm, "forward", MethodType(_of_a_copy, norm)


def _on_a_copy(block: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    return type(block)._forward(block, x.clone(), *args, **kwargs)


def _of_a_copy(norm: Any, x: Tensor) -> Any:
    return type(norm).forward(norm, x.clone())


def without_waits(*networks: nn.Module) -> Iterator[Change]:
    """Changes for `patched`: compute on the device what the original code starts on the CPU, which waits for the GPU then.

    They are the embedding of timesteps, CLIP's causal mask in older transformers, and pooling in `sgm`'s OpenCLIP.
    """
    kinds = {kind for network in networks for module in network.modules() for kind in type(module).__mro__}
    for file in {kind.__module__ for kind in kinds}:
        for name, ours in (("timestep_embedding", _embed_timesteps), ("_make_causal_mask", _causal_mask)):
            if name in vars(sys.modules[file]):
                yield sys.modules[file], name, ours
    for module in (each for network in networks for each in network.modules()):
        if hasattr(module, "pool") and hasattr(getattr(module, "model", None), "text_projection"):
            yield module, "pool", MethodType(_pool, module)


def _causal_mask(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """(B, 1, T, T) for a shape (B, T): the lowest number where a token would see a later one, else 0."""
    batch, length = shape
    lowest = torch.full((length, length), torch.finfo(dtype).min, dtype=dtype, device=device)
    return lowest.triu(1).expand(batch, 1, length, length)


def _pool(embedder: Any, hidden: Tensor, ids: Tensor) -> Tensor:
    """(B, T, D) -> (B, width): the projected state of the end of text, which has the highest id."""
    ends = hidden[torch.arange(len(hidden), device=hidden.device), ids.argmax(-1)]  # (B, D)
    return ends @ embedder.model.text_projection


def _embed_timesteps(timesteps: Tensor, dim: int, max_period: float = 10000, repeat_only: bool = False) -> Tensor:
    """(B,) -> (B, dim), of the timesteps' dtype: cosines and sines of decreasing frequencies, as in arXiv:1706.03762."""
    if repeat_only:
        return timesteps[:, None].expand(-1, dim)
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps[:, None].float() * (-math.log(max_period) * exponents).exp()
    return F.pad(torch.cat([angles.cos(), angles.sin()], 1), (0, dim % 2)).to(timesteps.dtype)


def _attend_in_vae(block: Any, x: Tensor) -> Tensor:
    """A VAE's attention, (B, C, H, W) -> (B, C, H, W)."""
    normed = block.norm(x)
    query, key, value = (
        layer(normed).flatten(2).transpose(1, 2)[:, None] for layer in (block.q, block.k, block.v)
    )  # (B, 1, H W, C)
    attended = F.scaled_dot_product_attention(query, key, value)[:, 0]
    return x + block.proj_out(attended.transpose(1, 2).reshape(x.shape))


def _attend(
    layer: Any, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None, *, fp32: bool = False, **_: Any
) -> Tensor:
    """(B, N, width) -> (B, N, width); context (B, T, context width), mask (B, T). Other arguments are for videos.

    With `fp32` the scores are computed in float32: float16 overflows at 65504.
    """
    context = x if context is None else context
    query, key, value = (
        each.unflatten(-1, (layer.heads, -1)).transpose(1, 2)  # (B, heads, N or T, width / heads)
        for each in (layer.to_q(x), layer.to_k(context), layer.to_v(context))
    )
    dtype = value.dtype
    if fp32:
        query, key, value = query.float(), key.float(), value.float()
    visible = None if mask is None else mask.flatten(1)[:, None, None]
    # Autocast would cast them back to half precision; on a CPU the WebUI never uses it.
    with torch.autocast("cuda", enabled=False) if fp32 and torch.is_autocast_enabled() else nullcontext():
        attended = F.scaled_dot_product_attention(query, key, value, visible).to(dtype)
    return layer.to_out(attended.transpose(1, 2).flatten(2))


def _attend_fp32(layer: Any, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None, **_: Any) -> Tensor:
    return _attend(layer, x, context, mask, fp32=True)
