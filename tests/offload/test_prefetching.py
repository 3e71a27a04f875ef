"""Weights that are copied in advance: the right ones, and never read or overwritten before their time.

The stand-in for a GPU copies as late as it may: when the computing stream waits for the copy. A tensor that nobody has
waited for is NaN. It also notes copies into memory that may be in use, and memory that is freed before its copy is made.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("diffusers")

from ti_trainer.hosts.diffusers.loading import load
from ti_trainer.hosts.diffusers.model import DiffusersModel
from ti_trainer.hosts.diffusers.sampling import whole_image
from ti_trainer.offload import prefetching
from ti_trainer.offload.checkpointing import blocks_of
from ti_trainer.offload.plan import PLANS
from ti_trainer.offload.prefetching import Prefetcher
from ti_trainer.offload.streaming import BlockOffloader

CPU = torch.device("cpu")


class LateGpu:
    """Its streams, as far as a Prefetcher uses them. `fails` are the waits that it leaves out."""

    def __init__(self, fails: str = "") -> None:
        self.fails, self.clock, self.may_overwrite_before = fails, 0, 0
        self.pending: list[tuple[weakref.ref[Tensor], Tensor]] = []
        self.made = 0  # copies
        self.wrong: list[str] = []

    def empty_like(self, tensor: Tensor, **named: Any) -> Tensor:
        """Memory that the work before this may still use."""
        found = EMPTY_LIKE(tensor, **named).fill_(torch.nan)
        self.clock += 1
        found.allocated_at = self.clock  # type: ignore[attr-defined]
        return found

    def copy(self, target: Any, source: Tensor) -> None:
        if self.may_overwrite_before < target.allocated_at:
            self.wrong.append("a copy into memory that is still in use")
        copy = weakref.ref(target), source
        self.pending.append(copy)
        weakref.finalize(target, self.freed, copy)

    def freed(self, copy: Any) -> None:
        if any(each is copy for each in self.pending):
            self.wrong.append("memory was freed before its copy was made")


class Stream:
    def __init__(self, gpu: LateGpu) -> None:
        self.gpu = gpu

    def wait_stream(self, stream: Stream) -> None:
        """Of the copying stream for the computing one."""
        if self.gpu.fails != "wait_stream":
            self.gpu.may_overwrite_before = self.gpu.clock

    def record_event(self) -> int:
        return self.gpu.made + len(self.gpu.pending)

    def wait_event(self, event: int) -> None:
        """Of the computing stream for copies."""
        while self.gpu.fails != "wait_event" and self.gpu.made < event:
            target, source = self.gpu.pending.pop(0)
            self.gpu.made += 1
            if (tensor := target()) is not None:
                tensor.copy_(source)


class Copying(TorchDispatchMode):
    """Within it copies are left for later."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self.gpu = stream.gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is torch.ops.aten.copy_.default, func
        self.gpu.copy(*args[:2])
        return args[0]


EMPTY_LIKE = torch.empty_like


@contextmanager
def on(gpu: LateGpu) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefetching, "needs_copies", lambda stored, device: True)
        patch.setattr(torch, "empty_like", gpu.empty_like)
        patch.setattr(torch.cuda, "Stream", lambda device: Stream(gpu))
        patch.setattr(torch.cuda, "current_stream", lambda device: Stream(gpu))
        patch.setattr(torch.cuda, "stream", Copying)
        yield


def gradient(model: DiffusersModel) -> Tensor:
    """That of a step to two vectors."""
    generator = torch.Generator().manual_seed(0)
    vectors = (torch.randn(2, model.widths["clip_l"], generator=generator) * 0.1).requires_grad_()
    latents = torch.randn(1, 4, 8, 8, generator=generator)
    with model.training():
        cond = model.encode_prompts(["a zz-cat"], {"zz-cat": {"clip_l": vectors}})
        prediction = model.predict(latents, torch.tensor([500]), cond, whole_image(model, 64, 64))
        return torch.autograd.grad(prediction.square().mean(), vectors)[0]


@contextmanager
def offloaded(model: DiffusersModel) -> Iterator[None]:
    offloader = BlockOffloader(model.unet, model.modules[2:], CPU)
    try:
        offloader.apply(PLANS["offload-all"])
        yield
    finally:
        offloader.close()


@pytest.fixture(scope="module")
def model() -> DiffusersModel:
    return load("embedded", "cpu")


def test_steps_give_the_same_gradient_with_most_weights_copied_in_advance(model: DiffusersModel) -> None:
    wanted, gpu = gradient(model), LateGpu()
    with on(gpu), offloaded(model):
        assert torch.equal(gradient(model), wanted)
        learning = gpu.made
        assert torch.equal(gradient(model), wanted)
        text, unet = (sum(1 for _ in parameters(each)) for each in (model.text_encoders[0].module, model.unet))
        assert gpu.made - learning > 1.6 * (text + unet), "each block twice but the last and the first, whose weights stay"
        with torch.no_grad():  # another order, as for a preview
            model.encode_prompts(["a cat"], {})
            model.encode_prompts(["a cat at night"], {})
        assert torch.equal(gradient(model), wanted)
    assert not gpu.wrong
    assert not gpu.pending


def parameters(module: torch.nn.Module) -> Iterator[Tensor]:
    """Those that are offloaded."""
    return (weight for block in blocks_of(module) for weight in block.parameters())


@pytest.mark.parametrize("fails", ["wait_event", "wait_stream"])
def test_a_wait_that_is_missing_is_noticed(fails: str, model: DiffusersModel) -> None:
    """What the test above is worth."""
    wanted, gpu = gradient(model), LateGpu(fails)
    with on(gpu), offloaded(model):
        gradient(model)  # of which nothing is known in advance
        found = gradient(model)
    assert gpu.wrong
    if fails == "wait_event":
        assert not torch.equal(found, wanted)


class Block:
    """One weight of a number."""

    def __init__(self, number: float) -> None:
        self.stored = [torch.full((2,), number)]


def test_a_wrong_guess_changes_nothing() -> None:
    first, second, third = map(Block, (1.0, 2.0, 3.0))
    gpu, prefetcher = LateGpu(), Prefetcher(CPU)
    with on(gpu):
        for block in (first, second, third, first, second, first, second, second, third, third, first, second, third, first):
            assert torch.equal(prefetcher.weights(block)[0], block.stored[0])
        prefetcher.forget()
    assert 0 < gpu.made < 14
    assert not gpu.wrong
    assert not gpu.pending


def test_without_room_nothing_is_copied_in_advance() -> None:
    def no_room(tensor: Tensor, **named: Any) -> Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    first, second = map(Block, (1.0, 2.0))
    gpu, prefetcher = LateGpu(), Prefetcher(CPU)
    gpu.empty_like = no_room  # type: ignore[method-assign]
    with on(gpu):
        for block in (first, second) * 3:
            assert torch.equal(prefetcher.weights(block)[0], block.stored[0])
    assert gpu.made == 0
