"""Weight offloading: a block's weights are kept in RAM, or in 8 bits, and copied to the device only while it computes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ti_trainer.offload.checkpointing import Autocast, blocks_of, checkpointed, largest_blocks
from ti_trainer.offload.patching import patched
from ti_trainer.offload.plan import MemoryPlan
from ti_trainer.offload.prefetching import Prefetcher

log = logging.getLogger(__name__)
CPU = torch.device("cpu")


class BlockOffloader:
    """Applies memory plans to the blocks of a U-Net and its text encoders, until `close`; the weights are the same then."""

    def __init__(
        self, unet: nn.Module, text_encoders: Sequence[nn.Module], device: torch.device, autocast: Autocast = nullcontext
    ) -> None:
        """The networks compute on `device`; nothing is changed yet."""
        self._blocks, self._text_blocks = blocks_of(unet), blocks_of(*text_encoders)
        self._device, self._autocast = device, autocast
        self._offloaded: dict[nn.Module, OffloadedBlock] = {}
        self._prefetcher = Prefetcher(device)
        self._waiting: list[OffloadedBlock] = []  # no longer offloaded, but the device had no room for their weights
        self._checkpointing = ExitStack()

    def apply(self, plan: MemoryPlan) -> None:
        """Follow this plan instead of the last. Blocks that both offload are not brought back: there may be no room."""
        self._checkpointing.close()
        self._prefetcher.forget()
        everything = [*self._blocks, *self._text_blocks]
        in_ram = {"none": [], "text": self._text_blocks, "all": everything}[plan.offload]
        moved = everything if plan.eight_bit else in_ram
        kept = [block for block, each in self._offloaded.items() if block in moved and each.eight_bit == plan.eight_bit]
        self._restore([block for block in self._offloaded if block not in kept])
        for block in moved:
            if block not in self._offloaded:
                self._offloaded[block] = OffloadedBlock(block, self._prefetcher, self._device, eight_bit=plan.eight_bit)
            self._offloaded[block].store_on(CPU if block in in_ram else self._device)
        # Checkpointing comes last, around the offloading: a block that is computed again needs its weights again.
        blocks = everything if moved else largest_blocks(self._blocks, plan.checkpointing)
        self._checkpointing.enter_context(patched(checkpointed(blocks, self._autocast)))

    def close(self) -> None:
        """Restore the networks."""
        self._checkpointing.close()
        self._prefetcher.forget()
        self._restore(list(self._offloaded))

    def _restore(self, blocks: Sequence[nn.Module]) -> None:
        self._waiting += [self._offloaded.pop(block) for block in blocks]
        self._waiting = [
            each for each in self._waiting if not each.restore()
        ]  # after an interrupt all wait for the next call
        if self._waiting:
            message = (
                "The GPU has no room for the weights of %s blocks of the network, which stay in RAM: reload the checkpoint."
            )
            log.warning(message, len(self._waiting))
        if blocks and self._device.type == "cuda" and hasattr(torch._C, "_host_emptyCache"):
            torch._C._host_emptyCache()  # return pinned memory to the system


class OffloadedBlock:
    """A block whose weights are stored elsewhere, perhaps in 8 bits, and are on the device only while it computes.

    It has to be checkpointed: otherwise the backward pass would keep the weights on the device.
    """

    def __init__(self, block: nn.Module, prefetcher: Prefetcher, device: torch.device, *, eight_bit: bool) -> None:
        """Take the weights out of the block; `store_on` says where they are kept."""
        self._block, self._prefetcher, self._device, self.eight_bit = block, prefetcher, device, eight_bit
        weights = list(block.parameters())
        self._origin = {each: each.device for each in weights}
        # 8 bits are not exact, so the exact weights are kept in RAM.
        self._exact = {each: each.data.to(CPU) for each in weights} if eight_bit else {}
        self._stored = {
            each: _StoredWeight(each.data.to(device) if eight_bit else each.data, eight_bit=eight_bit and each.ndim > 1)
            for each in weights
        }
        self._patch = ExitStack()
        self._patch.enter_context(patched([(block, "forward", partial(self._with_weights, block.forward))]))

    @property
    def stored(self) -> list[Tensor]:
        """All weights as they are stored."""
        return [each.values for each in self._stored.values()]

    def store_on(self, device: torch.device) -> None:
        """Keep the weights on this device from now on."""
        for each, stored in self._stored.items():
            stored.move_to(device, pinned=self._device.type == "cuda")
            each.data = torch.empty(0, dtype=each.dtype, device=device)

    def restore(self) -> bool:
        """Give the block its weights back. False if there was no room for some on their device: those are in RAM."""
        self._patch.close()
        complete = True
        for each, origin in self._origin.items():
            data = self._exact.get(each, self._stored[each].values)
            try:
                each.data = data.to(origin)
            except RuntimeError:
                each.data, complete = data, False
        return complete

    def _with_weights(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Compute with copies of the weights, as tensors of their own, which autograd may hold longer than this call."""
        values = self._prefetcher.weights(self)
        weights = {each: stored.decoded(value) for (each, stored), value in zip(self._stored.items(), values, strict=True)}
        del values
        places = [
            (module, name, weight)
            for module in self._block.modules()
            for name, weight in module._parameters.items()
            if weight is not None and weight in self._stored
        ]
        try:
            for module, name, weight in places:
                # torch reads any tensor here; a parameter would be a leaf of its own for autograd
                module._parameters[name] = weights[weight]  # type: ignore[assignment]
            del weights
            return forward(*args, **kwargs)
        finally:
            for module, name, weight in places:
                module._parameters[name] = weight


class _StoredWeight:
    """One weight; in 8 bits with one scale for each output channel (symmetric, by the largest absolute value)."""

    def __init__(self, weight: Tensor, *, eight_bit: bool) -> None:
        self.dtype, self.values = weight.dtype, weight
        self.scale: Tensor | None = None
        if eight_bit:
            largest = weight.abs().amax(tuple(range(1, weight.ndim)), keepdim=True).float()
            self.scale = (largest / 127).clamp_min(1e-12)  # (output channels, 1, ...)
            self.values = (weight / self.scale).round().to(torch.int8)

    def move_to(self, device: torch.device, *, pinned: bool) -> None:
        self.values = self.values.to(device)
        if device.type == "cpu" and pinned and not self.values.is_pinned():
            with suppress(RuntimeError):  # pinned memory may run out earlier than other memory
                self.values = self.values.pin_memory()  # lets the copy to the device run in the background

    def decoded(self, values: Tensor) -> Tensor:
        """The weight, from a copy of the values on the scale's device."""
        return values if self.scale is None else (values * self.scale).to(self.dtype)
