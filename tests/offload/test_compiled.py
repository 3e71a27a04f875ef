"""A compiled network: the same numbers, for the shapes of a run only, and given up in words where it fails."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ti_trainer.offload import compiling as module
from ti_trainer.offload.compiling import COMPILING, MAX_SHAPES, MIN_STEPS, CompiledNetwork, compile_network, failure, pays
from ti_trainer.offload.kernels import fast_kernels

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
# Real kernels in seconds: compiled in this process, and without vector instructions, whose headers take the most time.
QUICKLY = {"compile_threads": 1, "cpp.vec_isa_ok": False}


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.text = nn.Conv2d(4, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Linear(6, 8)
        self.requires_grad_(False)

    def forward(self, latents: Tensor, hidden: Tensor, *, added: dict[str, Tensor] | None = None) -> Tensor:
        found = self.norm(self.conv(latents)) * self.text(hidden).mean(1)[..., None, None].tanh()
        return found if added is None else found + added["sizes"][:, None, None, None]


def outcome(network: Callable[..., Tensor], batch: int = 1, size: int = 4, **named: Any) -> tuple[Tensor, Tensor]:
    """What it makes of random numbers, and the gradient to the text."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(batch, 4, size, size, generator=generator)
    hidden = torch.randn(batch, 5, 6, generator=generator).requires_grad_()
    found = network(latents, hidden, **named)
    return found.detach(), torch.autograd.grad(found.square().sum(), hidden)[0]


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="PyTorch compiles with a C++ compiler")
@pytest.mark.skipif(" " in torch.__file__, reason="PyTorch cannot link to itself in a folder with a space in its name")
def test_it_makes_the_same_numbers_always(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With real kernels: some seconds."""
    import torch._inductor.config as inductor

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    network, compiled_shapes = Small(), []
    wanted = outcome(network)
    ours, message = compile_network(network, CPU, "on", 1, 1, lambda: compiled_shapes.append(1))
    assert message == COMPILING
    with inductor.patch(QUICKLY):
        first, second = outcome(ours), outcome(ours)
    ours.close()
    for found, again, eager in zip(first, second, wanted, strict=True):
        assert torch.equal(found, again)
        torch.testing.assert_close(found, eager, rtol=1e-5, atol=1e-5)
    assert compiled_shapes == [1]
    assert all(torch.equal(*each) for each in zip(outcome(network), wanted, strict=True))


def test_without_a_compiler_the_message_names_it(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    ours, _ = compile_network(Small(), CPU, "on", 1, 1, lambda: None)
    missing = {**QUICKLY, "cpp.cxx": ("no-such-compiler",)}
    with caplog.at_level(logging.WARNING), inductor.patch(missing), pytest.raises(Exception, match="no-such") as raised:
        outcome(ours)
    ours.close()
    assert failure(raised.value).startswith("Compiling the network failed (")
    assert "no-such-compiler" in failure(raised.value)
    assert caplog.text == ""


def test_only_shapes_of_training_are_compiled_and_not_more_than_it_says(graphs: list[int]) -> None:
    network, compiled_shapes = Small(), []
    ours = CompiledNetwork(network, CPU, lambda: compiled_shapes.append(len(graphs)))
    with torch.no_grad():
        ours(torch.zeros(2, 4, 4, 4), torch.zeros(2, 5, 6))
    ours(torch.zeros(2, 4, 4, 4), torch.zeros(2, 5, 6))
    assert (compiled_shapes, graphs) == ([], [])
    for size in (*range(1, MAX_SHAPES + 4), 1, 2):
        found, wanted = outcome(ours, size=size), outcome(network, size=size)
        assert all(torch.equal(*each) for each in zip(found, wanted, strict=True))
    assert (compiled_shapes, len(graphs)) == (list(range(MAX_SHAPES)), MAX_SHAPES)
    ours.close()


def test_what_else_is_fed_counts_as_a_shape(graphs: list[int]) -> None:
    ours = CompiledNetwork(Small(), CPU, lambda: None)
    for count in (1, 1, 2):
        outcome(ours, count, added={"sizes": torch.ones(count)})
    outcome(ours, 2, added={"sizes": torch.ones(1)})
    assert len(graphs) == 3


def test_what_cannot_be_compiled_is_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        message = "Windows not yet supported for torch.compile"
        raise RuntimeError(message)

    monkeypatch.setattr(torch, "compile", refuse)
    assert compile_network(Small(), CPU, "off", 9**9, 1, lambda: None) == (None, "")
    assert compile_network(Small(), CPU, "auto", 9**9, 1, lambda: None) == (None, "")  # never unasked on a CPU
    network, message = compile_network(Small(), CPU, "on", 1, 1, lambda: None)
    assert network is None
    assert message.startswith("Compiling the network failed (Windows not yet supported for torch.compile).")
    assert "AssertionError" in failure(AssertionError())
    assert "memory" in failure(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate"))


@pytest.mark.parametrize(
    ("device", "steps", "sizes", "triton", "capability", "wanted"),
    [
        (CUDA, MIN_STEPS, 1, True, (7, 5), True),
        (CUDA, MIN_STEPS - 1, 1, True, (7, 5), False),
        (CUDA, 3 * MIN_STEPS, 4, True, (7, 5), False),
        (CUDA, MAX_SHAPES * MIN_STEPS, 40, True, (7, 5), True),
        (CUDA, MIN_STEPS, 1, False, (7, 5), False),
        (CUDA, MIN_STEPS, 1, True, (6, 1), False),
        (CPU, 10 * MIN_STEPS, 1, True, (7, 5), False),
    ],
)
def test_unasked_it_is_done_where_it_pays(
    device: torch.device,
    steps: int,
    sizes: int,
    triton: bool,
    capability: tuple[int, int],
    wanted: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: name if triton else None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert pays(device, steps, sizes) == wanted


@pytest.mark.parametrize(
    ("device", "version", "in_thread", "wanted"),
    [
        (CPU, "2.13.0+cpu", False, "default"),
        (CUDA, "2.13.0+cu130", True, "reduce-overhead"),
        (CUDA, "2.1.2+cu121", False, "reduce-overhead"),
        (CUDA, "2.1.2+cu121", True, "default"),
    ],
)
def test_cuda_graphs_are_taken_where_torch_can(
    device: torch.device, version: str, in_thread: bool, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    found: list[str] = []
    if in_thread:
        thread = threading.Thread(target=lambda: found.append(module._mode(device)))
        thread.start()
        thread.join()
    else:
        found.append(module._mode(device))
    assert found == [wanted]


def settings() -> tuple[str, bool, bool]:
    cudnn = torch.backends.cudnn
    return torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark


@pytest.mark.parametrize("before", [("highest", False, False), ("medium", True, True)])
def test_the_process_multiplies_as_before_when_training_is_over(before: tuple[str, bool, bool]) -> None:
    at_first, cudnn = settings(), torch.backends.cudnn

    def set_all(values: tuple[str, bool, bool]) -> None:
        precision, cudnn.allow_tf32, cudnn.benchmark = values
        torch.set_float32_matmul_precision(precision)

    try:
        set_all(before)
        with fast_kernels(CPU):
            assert settings() == before
        with suppress(ZeroDivisionError), fast_kernels(CUDA):
            assert settings() == ("high", True, True)
            1 / 0  # noqa: B018
        assert settings() == before
    finally:
        set_all(at_first)
