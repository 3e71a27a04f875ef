"""Prefetching of offloaded weights: while one block computes, those of the next are copied on a second CUDA stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ti_trainer.offload.plan import ran_out


class Source(Protocol):
    """A block whose weights are stored elsewhere; compared by identity."""

    @property
    def stored(self) -> Sequence[Tensor]:
        """Its weights as they are stored, best in pinned memory."""
        ...


@dataclass(frozen=True)
class _Copies:
    """Weights of a block on the device, which are complete after `done`; None: already."""

    source: Source
    weights: list[Tensor]
    done: torch.cuda.Event | None


def needs_copies(stored: Sequence[Tensor], device: torch.device) -> bool:
    """Whether these weights have to be copied to this device, which can compute meanwhile."""
    return device.type == "cuda" and any(each.device.type != "cuda" for each in stored)


class Prefetcher:
    """Gives the weights of blocks on a device. At most those of two blocks are there: of the current and of the next.

    Blocks compute in nearly the same order in each step, forward and then backward: what followed the same two blocks the
    last time is expected next. A wrong guess costs one copy, and the result never depends on it.

    The copies' memory belongs to the computing stream, whose order the allocator goes by when it gives freed memory to the
    next tensor. So the copying stream waits until everything is computed that was asked for before the memory was
    allocated, and the computing stream waits for each copy, even one that nobody uses, before the memory is freed.
    """

    def __init__(self, device: torch.device) -> None:
        """Nothing is expected yet."""
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._next: _Copies | None = None
        self._last: tuple[Source | None, Source | None] = (None, None)
        self._following: dict[tuple[Source | None, Source | None], Source] = {}

    def weights(self, source: Source) -> list[Tensor]:
        """The block's weights on the device, for what the current stream computes from here on."""
        if not needs_copies(source.stored, self._device):
            return [each.to(self._device) for each in source.stored]
        self._following[self._last] = source
        self._last = self._last[1], source
        copies = self._expected()
        if copies is None or copies.source is not source:
            del copies  # to free their memory
            copies = _Copies(source, [each.to(self._device, non_blocking=True) for each in source.stored], None)
        following = self._following.get(self._last)
        if following is source:  # the last block forward is the first one backward
            self._next = _Copies(source, copies.weights, None)
        elif following is not None:
            self._next = self._copied(following)
        return copies.weights

    def forget(self) -> None:
        """Expect nothing, and free the memory of weights that have been copied in advance."""
        self._expected()
        self._last, self._following = (None, None), {}

    def _expected(self) -> _Copies | None:
        """The weights that have been copied in advance, once they are complete for the current stream."""
        copies, self._next = self._next, None
        if copies is not None and copies.done is not None:
            torch.cuda.current_stream(self._device).wait_event(copies.done)
        return copies

    def _copied(self, source: Source) -> _Copies | None:
        """Begin to copy a block's weights; None if the device has no room for them."""
        try:
            weights = [torch.empty_like(each, device=self._device) for each in source.stored]
        except RuntimeError as error:
            if not ran_out(error):
                raise
            return None
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for weight, each in zip(weights, source.stored, strict=True):
                weight.copy_(each, non_blocking=True)
        return _Copies(source, weights, self._stream.record_event())
