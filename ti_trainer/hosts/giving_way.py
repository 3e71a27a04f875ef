"""How a network computes with less memory, in whatever host: blocks that compute twice, weights that come when needed.

Each is undone when its context ends, and the weights are what they were. Knows no host; what is chosen is memory.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import dropwhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ti_trainer.memory import MemoryPlan

_NOTHING = object()
Change = tuple[Any, str, Any]  # object, attribute, value
Autocast = Callable[[], AbstractContextManager[Any]]
PARTS_OF_BLOCKS = (
    ("attn1", "attn2", "ff"),  # a transformer's block, in ldm, sgm and diffusers
    ("in_layers", "out_layers", "emb_layers"),  # a residual block of ldm and sgm
    ("norm1", "conv1", "norm2", "conv2"),  # one of diffusers, and of all VAEs
    ("self_attn", "mlp", "layer_norm1"),  # a layer of transformers' CLIP
    ("attn", "mlp", "ln_1", "ln_2"),  # one of OpenCLIP
)


def blocks_of(*networks: nn.Module) -> list[nn.Module]:
    """What networks consist of, nearly: the blocks that have most weights and keep most for the way back."""
    modules = (module for network in networks for module in network.modules())
    return [each for each in modules if any(all(hasattr(each, name) for name in names) for names in PARTS_OF_BLOCKS)]


def some_of(blocks: Sequence[nn.Module], part: float) -> list[nn.Module]:
    """As few blocks of a U-Net as keep this part (0 to 1) of what all of them keep; before any text nothing is kept."""
    if part >= 1:
        return list(blocks)
    keeping = list(dropwhile(lambda each: not hasattr(each, "attn2"), blocks))
    by_size = sorted(keeping, key=kept_by, reverse=True)
    left, chosen = part * sum(map(kept_by, keeping)), []
    for block in by_size:
        if left <= 0:
            break
        chosen.append(block)
        left -= kept_by(block)
    return chosen


def kept_by(block: Any) -> float:
    """How much a block of a U-Net keeps for its way back, to be compared with others.

    A transformer's block keeps about 21 numbers for each channel and place, a residual one 3 for each that goes in or comes
    out: with frozen weights that is what norms, activations, products and attention need. Where channels double, each
    side has half as many places.
    """
    if hasattr(block, "attn1"):
        width = block.attn1.to_q.in_features
        return 21 * width / width**2
    channels = [each for each in block.modules() if isinstance(each, nn.Conv2d)]
    return 3 * (channels[0].in_channels + channels[0].out_channels) / channels[0].out_channels ** 2


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


def recomputed(blocks: Iterable[nn.Module], autocast: Autocast = nullcontext) -> Iterator[Change]:
    """These keep their input for the way back, and compute the rest of what it needs once more.

    By torch: the original code's own way asks for gradients of the weights, which are frozen. It happens when `predict` has
    left the host's autocast, which may be one of its own, so that is entered again.
    """
    options = {"use_reentrant": False, "preserve_rng_state": False, "context_fn": lambda: (nullcontext(), autocast())}
    for block in blocks:
        yield block, "forward", partial(checkpoint, block.forward, **options)


@contextmanager
def given_way(
    plan: MemoryPlan, unet: nn.Module, texts: Sequence[nn.Module], device: torch.device, autocast: Autocast = nullcontext
) -> Iterator[None]:
    """The U-Net and the text encoders, which compute on the device, compute as the plan says."""
    blocks = blocks_of(unet)
    with ExitStack() as stack:
        if plan.stream or plan.eight_bit:
            blocks += blocks_of(*texts)
            home = torch.device("cpu") if plan.stream else device
            for block in blocks:
                stack.enter_context(away(block, home, device, eight_bit=plan.eight_bit))
        stack.enter_context(attributes(recomputed(some_of(blocks, plan.recompute), autocast)))
        yield


@contextmanager
def away(block: nn.Module, home: torch.device, device: torch.device, *, eight_bit: bool = False) -> Iterator[None]:
    """The block's weights lie at home, perhaps in 8 bits, and are on the device only while the block computes.

    For its way back it has to be computed once more within `recomputed`, or they would stay until then.
    """
    weights = [each for each in block.parameters() if each.device == device]
    before = [each.data for each in weights]
    if eight_bit:  # what is kept is not exact: those that are lie in RAM meanwhile
        before = [each.to("cpu") for each in before]
    kept = {id(each): _Kept(each.data, home, eight_bit=eight_bit and each.ndim > 1) for each in weights}
    nothing = torch.empty(0, device=home)
    forward = block.forward

    def with_weights(*given: Any, **named: Any) -> Any:
        with brought(block, kept, device):
            return forward(*given, **named)

    try:
        if not eight_bit:
            before = [kept[id(each)].values for each in weights]
        for each in weights:
            each.data = nothing.to(each.dtype)
        with attributes([(block, "forward", with_weights)]):
            yield
    finally:
        for each, data in zip(weights, before, strict=True):
            each.data = data.to(device)


@contextmanager
def brought(block: nn.Module, kept: dict[int, _Kept], device: torch.device) -> Iterator[None]:
    """Within it the block's weights are there; they are tensors of their own, which the way back may hold longer."""
    homes = [
        (module, name, weight)
        for module in block.modules()
        for name, weight in module._parameters.items()
        if weight is not None and id(weight) in kept
    ]
    try:
        for module, name, weight in homes:
            module._parameters[name] = kept[id(weight)].on(device)
        yield
    finally:
        for module, name, weight in homes:
            module._parameters[name] = weight


class _Kept:
    """One weight at home; in 8 bits with a scale for each channel out (symmetric, by its largest number)."""

    def __init__(self, weight: Tensor, home: torch.device, *, eight_bit: bool) -> None:
        self.dtype, self.scale = weight.dtype, None
        if eight_bit:
            largest = weight.abs().amax(tuple(range(1, weight.ndim)), keepdim=True).float()
            self.scale = (largest / 127).clamp_min(1e-12)  # (channels out, 1, ...)
            weight = (weight / self.scale).round().to(torch.int8)
        self.values = weight.to(home, copy=True)
        if home.type == "cpu" and torch.cuda.is_available():
            self.values = self.values.pin_memory()  # comes while the card still computes

    def on(self, device: torch.device) -> Tensor:
        values = self.values.to(device, non_blocking=True)
        return values if self.scale is None else (values * self.scale.to(device)).to(self.dtype)
