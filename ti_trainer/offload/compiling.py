"""torch.compile for a network's training steps, for the few input shapes of a run.

A network that cannot be compiled runs uncompiled: no error of the compiler ends a run.
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

MAX_SHAPES = 8  # each takes a minute or more to compile; inputs of other shapes run uncompiled
# Steps of one shape from which auto compiles on a GPU. An estimate, not measured: about 100 s for 25 ms of a step. On a CPU
# it never does: there 118 s saved 7 to 10% of a step of 26 ms (2026-11-21, embedded model, 2 busy cores of an AMD EPYC).
MIN_STEPS = 4000
MIN_CAPABILITY = (7, 0)  # CUDA compute capability that triton supports
GRAPHS_IN_THREADS_FROM = (2, 13)  # torch; before, CUDA graphs fail outside of the thread that imported them
NO_MEMORY = "The network is not compiled: there is too little memory for it."
COMPILING = "The network is compiled: the first steps take a minute or more, later steps are faster."


class CompiledNetwork:
    """Runs a network compiled where a gradient is needed, and uncompiled otherwise: previews have other shapes.

    `on_compile` is called before a shape is compiled. The network itself is not changed. RuntimeError if this torch cannot
    compile.
    """

    def __init__(self, network: nn.Module, device: torch.device, on_compile: Callable[[], None]) -> None:
        """Nothing is compiled before the first call."""
        self._network, self._on_compile = network, on_compile
        _import_setuptools()

        def call(*args: Any, **kwargs: Any) -> Any:  # a function, since torch marks the modules that it compiles
            return network(*args, **kwargs)

        self._compiled = torch.compile(call, dynamic=False, mode=_mode(device))
        self._shapes: set[tuple[object, ...]] = set()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The network's output."""
        tensors = _tensors((args, tuple(kwargs.values())))
        if not torch.is_grad_enabled() or not any(each.requires_grad for each in tensors):
            return self._network(*args, **kwargs)
        shapes = tuple(each.shape for each in tensors)
        if shapes not in self._shapes:
            if len(self._shapes) == MAX_SHAPES:
                return self._network(*args, **kwargs)
            self._shapes.add(shapes)
            self._on_compile()
        return self._compiled(*args, **kwargs)

    def close(self) -> None:
        """Drop the compiled code and free the memory of its graphs. Other compiled code in this process compiles anew."""
        if self._shapes:
            torch.compiler.reset()


def compile_network(
    network: nn.Module, device: torch.device, when: Compile, steps: int, shapes: int, on_compile: Callable[[], None]
) -> tuple[CompiledNetwork | None, str]:
    """The network compiled for `steps` steps on inputs of `shapes` shapes, or None; and a message, which may be empty."""
    if when == "off" or (when == "auto" and not pays(device, steps, shapes)):
        return None, ""
    try:
        return CompiledNetwork(network, device, on_compile), COMPILING
    except (RuntimeError, ImportError, AttributeError) as error:
        return None, failure(error)


def pays(device: torch.device, steps: int, shapes: int) -> bool:
    """Whether this many steps save more time than compiling takes, and the device supports it."""
    if device.type != "cuda" or steps < MIN_STEPS * min(shapes, MAX_SHAPES):
        return False
    return importlib.util.find_spec("triton") is not None and torch.cuda.get_device_capability(device) >= MIN_CAPABILITY


def failure(error: Exception) -> str:
    """The message for a network that could not be compiled, or failed when it was."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "The compiled network needs more memory than there is. Training continues without compiling."
    lines = (line.strip() for line in str(error).splitlines())
    reason = next((line for line in lines if line and not line.endswith("raised:")), type(error).__name__)
    return f"Compiling the network failed ({reason[:200].rstrip('.')}). Training continues without compiling."


def _import_setuptools() -> None:
    """Import setuptools, which torch needs to compile for a CPU; once torch has looked for pip, the import fails."""
    try:
        importlib.import_module("setuptools")
    except ImportError:
        pass
    except AssertionError:  # something has looked for pip already
        before = os.environ.get("SETUPTOOLS_USE_DISTUTILS")
        os.environ["SETUPTOOLS_USE_DISTUTILS"] = "stdlib"
        try:
            with suppress(ImportError):
                importlib.import_module("setuptools")
        finally:
            del os.environ["SETUPTOOLS_USE_DISTUTILS"]
            os.environ.update({} if before is None else {"SETUPTOOLS_USE_DISTUTILS": before})


def _mode(device: torch.device) -> str:
    """torch.compile's mode: with CUDA graphs where this torch can use them in this thread."""
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    graphs_work = version >= GRAPHS_IN_THREADS_FROM or threading.current_thread() is threading.main_thread()
    return "reduce-overhead" if device.type == "cuda" and graphs_work else "default"


def _tensors(inputs: Any) -> list[Tensor]:
    """All tensors in nested tuples and dicts."""
    if isinstance(inputs, Tensor):
        return [inputs]
    parts = inputs.values() if isinstance(inputs, dict) else inputs if isinstance(inputs, tuple) else ()
    return [tensor for part in parts for tensor in _tensors(part)]
