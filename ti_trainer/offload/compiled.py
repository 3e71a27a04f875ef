"""A network's way there and back, compiled by torch for the few shapes of a run. Knows no U-Net and no host.

What cannot be compiled is computed as it always was: nothing here may end a run.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from ti_trainer.model import Compile

SHAPES = 8  # that are compiled at most: each takes a minute or more; others go through the network as it is
# Steps of one size from which it is done unasked on a GPU. An estimate, not measured: some 100 s for 25 ms of a step. Never
# on a CPU: there 118 s won 7 to 10% of a step of 26 ms, with the embedded model (2026-11-21, 2 busy cores of an AMD EPYC).
PAYS_AFTER = 4000
FUSES_FROM = (7, 0)  # what triton makes kernels for: a CUDA device's capability
GRAPHS_IN_THREADS_FROM = (2, 13)  # torch; before, CUDA graphs fail outside of the thread that imported them
NO_ROOM = "The network is not compiled: memory is too short for that."
BEGINS = "The network is compiled: the first steps take a minute or more, those after them less time than without."


class CompiledNetwork:
    """Calls a network compiled where a gradient is wanted, and as it is where none is: images have other shapes.

    `begins` is called before a shape is compiled. The network itself stays as it was. RuntimeError if this torch cannot.
    """

    def __init__(self, network: nn.Module, device: torch.device, begins: Callable[[], None]) -> None:
        """Nothing is compiled before the first call."""
        self._network, self._begins = network, begins
        _import_setuptools()

        def call(*inputs: Any, **named: Any) -> Any:  # torch marks a module that it is given
            return network(*inputs, **named)

        self._compiled = torch.compile(call, dynamic=False, mode=_mode(device))
        self._shapes: set[tuple[object, ...]] = set()

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """What the network makes of these."""
        tensors = _tensors((inputs, tuple(named.values())))
        if not torch.is_grad_enabled() or not any(each.requires_grad for each in tensors):
            return self._network(*inputs, **named)
        shapes = tuple(each.shape for each in tensors)
        if shapes not in self._shapes:
            if len(self._shapes) == SHAPES:
                return self._network(*inputs, **named)
            self._shapes.add(shapes)
            self._begins()
        return self._compiled(*inputs, **named)

    def close(self) -> None:
        """Forget what was compiled, and free the memory of its graphs. Who else compiles in this process does so anew."""
        if self._shapes:
            torch.compiler.reset()


def compiled(
    network: nn.Module, device: torch.device, when: Compile, steps: int, sizes: int, begins: Callable[[], None]
) -> tuple[CompiledNetwork | None, str]:
    """The network compiled, or None, and what there is to say of it: `DiffusionModel.compile` where memory allows it."""
    if when == "off" or (when == "auto" and not pays(device, steps, sizes)):
        return None, ""
    try:
        return CompiledNetwork(network, device, begins), BEGINS
    except (RuntimeError, ImportError, AttributeError) as error:
        return None, failed(error)


def pays(device: torch.device, steps: int, sizes: int) -> bool:
    """Whether so many steps win back the time, and this device has what it needs."""
    if device.type != "cuda" or steps < PAYS_AFTER * min(sizes, SHAPES):
        return False
    return importlib.util.find_spec("triton") is not None and torch.cuda.get_device_capability(device) >= FUSES_FROM


def failed(error: Exception) -> str:
    """What to say where it cannot be."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "The compiled network needs more memory than there is; it goes on without compiling."
    lines = (line.strip() for line in str(error).splitlines())
    why = next((line for line in lines if line and not line.endswith("raised:")), type(error).__name__)
    return f"Compiling the network failed ({why[:200].rstrip('.')}); it goes on without."


def _import_setuptools() -> None:
    """Torch wants it when it compiles for a CPU, and cannot import it any more once it has looked for pip."""
    try:
        import setuptools
    except ImportError:
        pass
    except AssertionError:  # somebody else has looked for pip
        before = os.environ.get("SETUPTOOLS_USE_DISTUTILS")
        os.environ["SETUPTOOLS_USE_DISTUTILS"] = "stdlib"
        try:
            with suppress(ImportError):
                import setuptools  # noqa: F401
        finally:
            del os.environ["SETUPTOOLS_USE_DISTUTILS"]
            os.environ.update({} if before is None else {"SETUPTOOLS_USE_DISTUTILS": before})


def _mode(device: torch.device) -> str:
    """With CUDA graphs where they can be."""
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    anywhere = version >= GRAPHS_IN_THREADS_FROM or threading.current_thread() is threading.main_thread()
    return "reduce-overhead" if device.type == "cuda" and anywhere else "default"


def _tensors(given: Any) -> list[Tensor]:
    """All in tuples and dicts."""
    if isinstance(given, Tensor):
        return [given]
    parts = given.values() if isinstance(given, dict) else given if isinstance(given, tuple) else ()
    return [tensor for part in parts for tensor in _tensors(part)]
