"""Gradient checkpointing of a network's blocks: the backward pass computes activations again instead of keeping them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import dropwhile
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from ti_trainer.offload.patching import Change

Autocast = Callable[[], AbstractContextManager[Any]]
BLOCK_ATTRIBUTES = (  # a module that has all names of a row is a block
    ("attn1", "attn2", "ff"),  # a transformer block, in ldm, sgm and diffusers
    ("in_layers", "out_layers", "emb_layers"),  # a residual block of ldm and sgm
    ("norm1", "conv1", "norm2", "conv2"),  # a residual block of diffusers, and of all VAEs
    ("self_attn", "mlp", "layer_norm1"),  # a layer of transformers' CLIP
    ("attn", "mlp", "ln_1", "ln_2"),  # a layer of OpenCLIP
)


def blocks_of(*networks: nn.Module) -> list[nn.Module]:
    """The blocks that hold nearly all weights and activations of these networks."""
    modules = (module for network in networks for module in network.modules())
    return [each for each in modules if any(all(hasattr(each, name) for name in names) for names in BLOCK_ATTRIBUTES)]


def largest_blocks(blocks: Sequence[nn.Module], fraction: float) -> list[nn.Module]:
    """As few U-Net blocks as hold this fraction (0 to 1) of the activations of all.

    Blocks before the first one with cross-attention are left out: no gradient passes them, so they keep nothing.
    """
    if fraction >= 1:
        return list(blocks)
    candidates = list(dropwhile(lambda each: not hasattr(each, "attn2"), blocks))
    remaining = fraction * sum(map(activation_size, candidates))
    chosen: list[nn.Module] = []
    for block in sorted(candidates, key=activation_size, reverse=True):
        if remaining <= 0:
            break
        chosen.append(block)
        remaining -= activation_size(block)
    return chosen


def activation_size(block: Any) -> float:
    """The size of the activations that a U-Net block keeps for the backward pass, relative to other blocks.

    With frozen weights, a transformer block keeps about 21 numbers for each channel and position, and a residual block 3
    for each input and output channel: the inputs of norms, activation functions, products and attention. Where the number
    of channels doubles, height and width halve.
    """
    if hasattr(block, "attn1"):
        return 21 / float(block.attn1.to_q.in_features)
    convolutions = [each for each in block.modules() if isinstance(each, nn.Conv2d)]
    inputs, outputs = convolutions[0].in_channels, convolutions[0].out_channels
    return 3 * (inputs + outputs) / outputs**2


def checkpointed(blocks: Iterable[nn.Module], autocast: Autocast = nullcontext) -> Iterator[Change]:
    """Changes for `patched` that make these blocks keep their input only.

    This uses torch's checkpointing because that of the original code asks for gradients of the weights, which are frozen.
    The backward pass runs outside of the host's autocast context, which may be the host's own class: it is entered again.
    """
    options: dict[str, Any] = {
        "use_reentrant": False,
        "preserve_rng_state": False,
        "context_fn": lambda: (nullcontext(), autocast()),
    }
    for block in blocks:
        yield block, "forward", partial(checkpoint, block.forward, **options)
