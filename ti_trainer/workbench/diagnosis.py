"""What to paste into an issue: versions, the device, and training steps of an open model in each memory mode.

The lines name no folders. `ti-trainer doctor` prints more of them; the page shows `report`.
"""

from __future__ import annotations

import importlib.metadata
import logging
import platform
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import torch
from torch import Tensor

from ti_trainer import __version__
from ti_trainer.config.training import TrainConfig
from ti_trainer.data.dataset import Dataset, Item
from ti_trainer.data.prompts import Prompter
from ti_trainer.data.subsets import Subset
from ti_trainer.embedding import Embedding, initial_vectors
from ti_trainer.errors import TITrainerError
from ti_trainer.host import Host
from ti_trainer.model import DiffusionModel, MemoryMode
from ti_trainer.offload.compiling import failure
from ti_trainer.offload.plan import GIB, PLANS, free_bytes
from ti_trainer.training.events import MemoryReduced, StepDone
from ti_trainer.training.trainer import Trainer
from ti_trainer.wording import counted

log = logging.getLogger(__name__)
NAME, INIT_TEXT = "bench", "star"
STEPS = 3  # measured in each mode, after one that is not
STEPS_OF_PRECISION = 20
MOST_S = 20.0  # after which no further step of a mode is begun
PACKAGES = ("torch", "diffusers", "transformers", "gradio", "triton", "bitsandbytes")
ON_CPU: tuple[MemoryMode, ...] = ("none", "checkpointing")  # the other modes move nothing there
FOLDERS = re.compile(r"(?:(?<![\w.:/\\])[A-Za-z]:)?(?<![\w.])[\\/](?:[^\\/\s'\":]+[\\/])+")
Peak = tuple[Callable[[], None], Callable[[], "tuple[int, str] | None"]]  # resets it; reads its bytes and kind


def report(host: Host) -> Iterator[str]:
    """Lines about this host's model, which it holds until the end. Each part that fails is reported with its error."""
    with host.lock() as lease:
        try:
            model = host.open_model()
        except TITrainerError as error:
            yield from about(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
            yield f"model: {first_line(error)}"
            return
        expected = len(modes_for(model.device)) + 7
        for number, line in enumerate(_lines(host, model), 1):
            log.info("%s", line)  # if the process crashes, the console shows where
            lease.progress(min(number, expected), expected, "Measuring")
            yield line
            if lease.interrupted():
                yield "Interrupted: the rest was not measured."
                return


def _lines(host: Host, model: DiffusionModel) -> Iterator[str]:
    size_px = model.default_size_px
    yield from about(model.device)
    yield f"page of: {type(host).__name__}"
    yield from about_model(model, size_px)
    for mode in modes_for(model.device):
        yield f"  {mode:<14}{measured(model, size_px, mode)}"
    yield f"learning: {learned(model, size_px)}"
    yield f"torch.compile: {compiling(model.device)}"


def about(device: torch.device) -> Iterator[str]:
    """Versions and the device, and why it is no GPU."""
    yield f"TI Trainer {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    yield ", ".join(map(_version, PACKAGES))
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


def about_model(model: DiffusionModel, size_px: int) -> Iterator[str]:
    """The model, its precision, and how memory would be saved for it."""
    precision = str(model.dtype).removeprefix("torch.")
    yield f"model: {model.name} ({model.spec}), {size_px} px, batch size 1, {precision}"
    yield f"auto chooses: {model.fit_memory((size_px // 8) ** 2) or 'no measures'}"


def modes_for(device: torch.device) -> tuple[MemoryMode, ...]:
    """The memory modes that make a difference on this device."""
    return tuple(PLANS) if device.type == "cuda" else ON_CPU


def measured(model: DiffusionModel, size_px: int, mode: MemoryMode, peak: Peak | None = None) -> str:
    """Time per step and peak memory in this memory mode, or the error."""
    forget, read = peak or (_forget_peak, _peak)
    begun, times, notes = time.perf_counter(), list[float](), list[str]()
    try:
        model.fit_memory((size_px // 8) ** 2, mode=mode)
        with closing(trainer_of(model, size_px, STEPS + 1).run()) as run:
            for event in run:
                if isinstance(event, MemoryReduced):
                    notes.append(event.message)
                elif isinstance(event, StepDone):
                    float(event.loss)  # waits for the device
                    times.append(time.perf_counter())
                    if len(times) == 1:
                        forget()
                    elif times[-1] - times[0] > MOST_S:
                        break
    except Exception as error:  # whatever it is, the report is for it
        log.debug("It failed:", exc_info=True)
        return f"failed: {first_line(error)}"
    memory, steps = read(), len(times) - 1
    ms = 1000 * ((times[-1] - times[0]) / steps if steps else times[-1] - begun)
    found = f"{ms:8.0f} ms a step" + ("" if memory is None else f", peak {memory[0] / GIB:.2f} GB of {memory[1]}")
    return "; ".join([found, *map(without_folders, notes)])


def learned(model: DiffusionModel, size_px: int) -> str:
    """Whether losses are finite and the vectors move; with a loss scale it takes some steps until it is found."""
    begun, loss, steps = time.perf_counter(), float("nan"), 0
    try:
        model.fit_memory((size_px // 8) ** 2)
        trainer = trainer_of(model, size_px, STEPS_OF_PRECISION)
        before = trainer.embedding.vectors
        with closing(trainer.run()) as run:
            for event in run:
                if isinstance(event, StepDone):
                    loss, steps = float(event.loss), event.step
                    if time.perf_counter() - begun > MOST_S:
                        break
        moved = any(not torch.equal(each, before[key]) for key, each in trainer.embedding.vectors.items())
    except Exception as error:  # whatever it is, the report is for it
        log.debug("It failed:", exc_info=True)
        return f"failed: {first_line(error)}"
    return f"finite, loss {loss:.4f} after {counted(steps, 'step')}" + ("" if moved else ", but the vectors have not moved")


def trainer_of(model: DiffusionModel, size_px: int, steps: int, batch_size: int = 1) -> Trainer:
    """A trainer of one vector on one image of noise."""
    config = TrainConfig(max_steps=steps, batch_size=batch_size, template="subject")
    return Trainer(model, _dataset(model, size_px), Embedding(NAME, first_vectors(model)), config)


def first_vectors(model: DiffusionModel) -> dict[str, Tensor]:
    """The vectors of the initial text, by text encoder."""
    return {encoder: initial_vectors(tokens, 1) for encoder, tokens in model.token_embeddings(INIT_TEXT).items()}


def compiling(device: torch.device) -> str:
    """Whether torch can compile for this device, tried on a small function."""
    if device.type != "cuda":
        return f"not tried: it does not pay on {device.type}"
    begun = time.perf_counter()
    try:
        compiled = torch.compile(lambda x: (x * 2).sin().sum(), dynamic=False)
        compiled(torch.ones(64, device=device)).item()
    except Exception as error:  # a compiler raises anything
        return without_folders(failure(error))
    finally:
        torch.compiler.reset()
    return f"works ({time.perf_counter() - begun:.0f} s for a small function)"


def first_line(error: Exception) -> str:
    """The first line of its message, without folders."""
    return without_folders((str(error).strip() or type(error).__name__).splitlines()[0][:200])


def without_folders(text: str) -> str:
    """The text with the last part of each path alone: folders often have a user's name."""
    return FOLDERS.sub("", text)


def _dataset(model: DiffusionModel, size_px: int) -> Dataset:
    """One image of noise, as it is after encoding."""
    size = size_px // 8
    latents = torch.randn(4, size, size, generator=torch.Generator().manual_seed(0))
    masked = torch.zeros(5, size, size) if model.spec.inpainting else None
    sizes = (size_px, size_px, 0, 0, size_px, size_px)
    item = Item(Path("noise"), None, latents, None, None, sizes, masked, Subset(Path()))
    return Dataset((item,), (), Prompter(NAME, ("a photo of [name]",)), 0, len(model.alphas_cumprod))


def _version(package: str) -> str:
    with suppress(importlib.metadata.PackageNotFoundError):
        return f"{package} {importlib.metadata.version(package)}"
    return f"no {package}"


def _forget_peak() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def _peak() -> tuple[int, str] | None:
    """Of torch's allocations on the GPU; None without one."""
    return (torch.cuda.max_memory_allocated(), "GPU") if torch.cuda.is_initialized() else None
