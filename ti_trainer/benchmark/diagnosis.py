"""What `doctor` reports: versions, the device, and a training step in each memory mode and precision."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from ti_trainer import __version__
from ti_trainer.benchmark import peer_driver
from ti_trainer.benchmark.loops import NAME, new_trainer
from ti_trainer.data.dataset import Dataset, Item
from ti_trainer.data.prompts import Prompter
from ti_trainer.data.subsets import Subset
from ti_trainer.errors import TITrainerError
from ti_trainer.host import ModelOptions
from ti_trainer.hosts.diffusers import loading, shapes
from ti_trainer.hosts.diffusers.model import DiffusersModel
from ti_trainer.model import MemoryMode
from ti_trainer.offload.compiling import failure
from ti_trainer.offload.plan import GIB, PLANS, free_bytes
from ti_trainer.training.events import StepDone

STEPS = 3  # measured in each mode, after one that is not
STEPS_OF_PRECISION = 20
PACKAGES = ("torch", "diffusers", "transformers", "triton", "bitsandbytes")
ON_CPU: tuple[MemoryMode, ...] = ("none", "checkpointing")  # the other modes move nothing there


def report(model: str, shape: str | None, device: str, size_px: int) -> Iterator[str]:
    """Lines for an issue. They name no folder. `shape` is one of `shapes.SHAPES` instead of a model, or None.

    Each part that fails is reported with its error; ModelError only for a device or a model that cannot be opened.
    """
    place = loading.pick_device(device)
    yield f"TI Trainer {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    yield ", ".join(map(_version, PACKAGES))
    yield from _device(place)
    precision = str(loading.pick_dtype("auto", place)).removeprefix("torch.")
    opened = _open(model, shape, device, "auto")
    size_px = size_px or opened.default_size_px
    yield f"model: {opened.name} ({opened.spec}), {size_px} px, batch size 1, {precision}"
    yield f"auto chooses: {opened.fit_memory((size_px // 8) ** 2) or 'no measures'}"
    for mode in PLANS if place.type == "cuda" else ON_CPU:
        yield f"  {mode:<14}{_measured(opened, size_px, mode)}"
    opened.use_all_memory()
    del opened  # two models may be too much for the device
    for each in ("fp16", "bf16", "fp32"):
        yield f"  {each:<14}{_gradient(model, shape, device, size_px, each)}"
    yield f"torch.compile: {_compile(place)}"


def _version(package: str) -> str:
    with suppress(importlib.metadata.PackageNotFoundError):
        return f"{package} {importlib.metadata.version(package)}"
    return f"no {package}"


def _device(device: torch.device) -> Iterator[str]:
    """The device, and why it is no GPU."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        total = torch.cuda.get_device_properties(device).total_memory
        free = free_bytes(device)
        yield (
            f"GPU: {torch.cuda.get_device_name(device)}, compute capability {major}.{minor}, "
            f"{free / GIB:.1f} of {total / GIB:.1f} GB free, CUDA {torch.version.cuda or torch.version.hip}"
        )
        return
    yield f"device: {device.type}, {torch.get_num_threads()} threads"
    if device.type == "mps" or torch.cuda.is_available():
        return
    if torch.version.cuda is None and torch.version.hip is None:
        yield "There is no GPU for this PyTorch: it was built without CUDA. With an NVIDIA GPU, install PyTorch with CUDA."
    else:
        yield f"There is no GPU: PyTorch was built with CUDA {torch.version.cuda}, but finds no device. Check the driver."


def _open(model: str, shape: str | None, device: str, precision: str) -> DiffusersModel:
    if shape is not None:
        return shapes.random_model(shape, device, precision)
    return loading.load(model, device, ModelOptions(precision))


def _dataset(model: DiffusersModel, size_px: int) -> Dataset:
    """One image of noise, as it is after encoding."""
    size = size_px // 8
    latents = torch.randn(4, size, size, generator=torch.Generator().manual_seed(0))
    masked = torch.zeros(5, size, size) if model.spec.inpainting else None
    sizes = (size_px, size_px, 0, 0, size_px, size_px)
    item = Item(Path("noise"), None, latents, None, None, sizes, masked, Subset(Path()))
    return Dataset((item,), (), Prompter(NAME, ("a photo of [name]",)), 0, len(model.alphas_cumprod))


def _measured(model: DiffusersModel, size_px: int, mode: MemoryMode) -> str:
    """Seconds per step and peak memory, or the error."""
    try:
        model.fit_memory((size_px // 8) ** 2, mode=mode)
        run = new_trainer(model, _dataset(model, size_px), 1, STEPS + 1).run()
        next(run)
        peer_driver.synchronize()
        peer_driver.forget_peak()
        begun = time.perf_counter()
        for _ in zip(range(STEPS), run, strict=False):
            pass
        peer_driver.synchronize()
        seconds = (time.perf_counter() - begun) / STEPS
        run.close()
    except (RuntimeError, TITrainerError) as error:
        return f"failed: {_first_line(error)}"
    memory = peer_driver.peak_memory()
    return f"{seconds * 1000:8.0f} ms a step" + ("" if memory is None else f", peak {memory[0] / GIB:.2f} GB of {memory[1]}")


def _gradient(model: str, shape: str | None, device: str, size_px: int, precision: str) -> str:
    """Whether a step's loss is finite and the vectors have moved in this precision."""
    try:
        opened = _open(model, shape, device, precision)
        opened.fit_memory((size_px // 8) ** 2)
        trainer = new_trainer(opened, _dataset(opened, size_px), 1, STEPS_OF_PRECISION)
        before = trainer.embedding.vectors
        loss = [float(event.loss) for event in trainer.run() if isinstance(event, StepDone)][-1]
        moved = any(not torch.equal(each, before[key]) for key, each in trainer.embedding.vectors.items())
        opened.use_all_memory()
    except (RuntimeError, TITrainerError) as error:
        return f"failed: {_first_line(error)}"
    return f"finite, loss {loss:.4f} after {STEPS_OF_PRECISION} steps" + (
        "" if moved else ", but the vectors have not moved"
    )


def _compile(device: torch.device) -> str:
    """Whether torch can compile for this device, tried on a small function."""
    if device.type != "cuda":
        return f"not tried: it does not pay on {device.type}"
    begun = time.perf_counter()
    try:
        compiled = torch.compile(lambda x: (x * 2).sin().sum(), dynamic=False)
        compiled(torch.ones(64, device=device)).item()
    except Exception as error:  # a compiler raises anything
        return failure(error)
    finally:
        torch.compiler.reset()
    return f"works ({time.perf_counter() - begun:.0f} s for a small function)"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
