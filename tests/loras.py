"""Small random LoRAs in the ways that other tools write them, and weights with them merged in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

RANK, ALPHA = 2, 3.0
Pair = tuple[Tensor, Tensor]  # down (r, inputs, ...), up (outputs, r, ...)


def pair(weight: tuple[int, ...], seed: int, strength: float = 0.3) -> Pair:
    """Random numbers for a layer whose weight has this shape."""
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(RANK, *weight[1:], generator=generator) * strength
    up = torch.randn(weight[0], RANK, *[1] * (len(weight) - 2), generator=generator) * strength
    return down, up


def merged_change(down: Tensor, up: Tensor) -> Tensor:
    """What the layer adds to a weight, as kohya's merge_lora.py computes it."""
    change = up.flatten(1) @ down.flatten(1)
    return (change * (ALPHA / RANK)).unflatten(1, down.shape[1:])


def kohya(layers: Mapping[str, Pair]) -> dict[str, Tensor]:
    """Tensors by kohya's names; the keys of `layers` are `lora_unet_...` and the like."""
    found = {}
    for name, (down, up) in layers.items():
        found |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(ALPHA)}
    return found


def save_kohya(path: Path, layers: Mapping[str, Pair], **others: Tensor) -> Path:
    """A file as kohya's scripts write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: each.contiguous() for key, each in {**kohya(layers), **others}.items()}, path)
    return path


@contextmanager
def merged(changes: Mapping[nn.Parameter, Tensor], weight: float) -> Iterator[None]:
    """Within it the weights have these changes; a change may be of the first rows only."""
    before = {each: each.data.clone() for each in changes}
    try:
        for each, change in changes.items():
            each.data += weight * change
        yield
    finally:
        for each, data in before.items():
            each.data.copy_(data)


def left_behind(*networks: Any) -> dict[str, Any]:
    """What a LoRA could leave in networks, besides numbers."""
    modules = [module for network in networks for module in network.modules()]
    return {
        "hooks": [(len(each._forward_hooks), len(each._forward_pre_hooks)) for each in modules],
        "own": [sorted(vars(each)) for each in modules],
        "weights": [id(weight) for each in modules for weight in each._parameters.values()],
    }
