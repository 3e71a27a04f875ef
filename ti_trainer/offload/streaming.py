"""How a network computes with less memory, in whatever host: blocks that compute twice, weights that come when needed.

All is undone in the end, and the weights are what they were. Knows no host; what is chosen is memory.py's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from itertools import dropwhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ti_trainer.offload.plan import MemoryPlan

log = logging.getLogger(__name__)
CPU = torch.device("cpu")
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
        return 21 / block.attn1.to_q.in_features
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


class BlockOffloader:
    """Makes a U-Net and its text encoders, which compute on a device, compute as plans say, until `close`."""

    def __init__(
        self, unet: nn.Module, texts: Sequence[nn.Module], device: torch.device, autocast: Autocast = nullcontext
    ) -> None:
        """Nothing gives way yet."""
        self._blocks, self._text_blocks = blocks_of(unet), blocks_of(*texts)
        self._device, self._autocast = device, autocast
        self._away: dict[nn.Module, _Away] = {}
        self._coming: list[_Away] = []  # those that there was no room for
        self._twice = ExitStack()

    def follow(self, plan: MemoryPlan) -> None:
        """Compute as it says. What an earlier plan sent away does not come back in between: there may be no room for it."""
        self._twice.close()
        everything = [*self._blocks, *self._text_blocks]
        in_ram = {"": [], "text": self._text_blocks, "all": everything}[plan.stream]
        moved = everything if plan.eight_bit else in_ram
        kept = [block for block, away in self._away.items() if block in moved and away.eight_bit == plan.eight_bit]
        self._bring_back([block for block in self._away if block not in kept])
        for block in moved:
            if block not in self._away:
                self._away[block] = _Away(block, self._device, eight_bit=plan.eight_bit)
            self._away[block].lie(CPU if block in in_ram else self._device)
        # Within, since a block that computes once more needs its weights once more.
        twice = everything if moved else some_of(self._blocks, plan.recompute)
        self._twice.enter_context(attributes(recomputed(twice, self._autocast)))

    def close(self) -> None:
        """Everything is as it was."""
        self._twice.close()
        self._bring_back(list(self._away))

    def _bring_back(self, blocks: Sequence[nn.Module]) -> None:
        self._coming += [self._away.pop(block) for block in blocks]
        self._coming = [each for each in self._coming if not each.back()]  # an interrupt leaves them all for the next time
        if self._coming:
            count = len(self._coming)
            log.warning("There is no room on the GPU for %s blocks of the network: load the checkpoint once more.", count)
        if blocks and self._device.type == "cuda" and hasattr(torch._C, "_host_emptyCache"):
            torch._C._host_emptyCache()  # what was pinned is the system's again


class _Away:
    """A block whose weights lie elsewhere, perhaps in 8 bits, and are on the device only while it computes.

    For its way back it has to be computed once more, or they would stay until then.
    """

    def __init__(self, block: nn.Module, device: torch.device, *, eight_bit: bool) -> None:
        self._block, self._device, self.eight_bit = block, device, eight_bit
        weights = list(block.parameters())
        self._origin = {each: each.device for each in weights}
        # What is kept in 8 bits is not exact: what is exact lies in RAM meanwhile.
        self._exact = {each: each.data.to(CPU) for each in weights} if eight_bit else {}
        self._kept = {each: _Kept(each.data, eight_bit=eight_bit and each.ndim > 1) for each in weights}
        self._changed = ExitStack()
        self._changed.enter_context(attributes([(block, "forward", partial(self._with_weights, block.forward))]))

    def lie(self, home: torch.device) -> None:
        """From now on there."""
        for each, kept in self._kept.items():
            kept.lie(home, pinned=self._device.type == "cuda")
            each.data = torch.empty(0, dtype=each.dtype, device=home)

    def back(self) -> bool:
        """The weights are what they were. False if there was no room for some, which are in RAM then."""
        self._changed.close()
        came = True
        for each, origin in self._origin.items():
            data = self._exact.get(each, self._kept[each].values)
            try:
                each.data = data.to(origin)
            except RuntimeError:
                each.data, came = data, False
        return came

    def _with_weights(self, forward: Callable[..., Any], *given: Any, **named: Any) -> Any:
        """Compute with weights that are tensors of their own, which the way back may hold longer."""
        homes = [
            (module, name, weight)
            for module in self._block.modules()
            for name, weight in module._parameters.items()
            if weight in self._kept
        ]
        try:
            for module, name, weight in homes:
                module._parameters[name] = self._kept[weight].on(self._device)
            return forward(*given, **named)
        finally:
            for module, name, weight in homes:
                module._parameters[name] = weight


class _Kept:
    """One weight; in 8 bits with a scale for each channel out (symmetric, by its largest number)."""

    def __init__(self, weight: Tensor, *, eight_bit: bool) -> None:
        self.dtype, self.scale, self.values = weight.dtype, None, weight
        if eight_bit:
            largest = weight.abs().amax(tuple(range(1, weight.ndim)), keepdim=True).float()
            self.scale = (largest / 127).clamp_min(1e-12)  # (channels out, 1, ...)
            self.values = (weight / self.scale).round().to(torch.int8)

    def lie(self, home: torch.device, *, pinned: bool) -> None:
        self.values = self.values.to(home)
        if home.type == "cpu" and pinned and not self.values.is_pinned():
            with suppress(RuntimeError):  # there may be less of such memory than of other
                self.values = self.values.pin_memory()  # so that the CPU need not wait while it is brought

    def on(self, device: torch.device) -> Tensor:
        values = self.values.to(device, non_blocking=True)
        return values if self.scale is None else (values * self.scale.to(device)).to(self.dtype)
