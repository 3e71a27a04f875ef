"""What `doctor` reports: versions, the device, and a training step in each memory mode and precision."""

from __future__ import annotations

from collections.abc import Iterator

from ti_trainer.benchmark import peer_driver
from ti_trainer.errors import TITrainerError
from ti_trainer.host import ModelOptions
from ti_trainer.hosts.diffusers import loading, shapes
from ti_trainer.hosts.diffusers.model import DiffusersModel
from ti_trainer.workbench import diagnosis

PRECISIONS = ("fp16", "bf16", "fp32")
PEAK = (peer_driver.forget_peak, peer_driver.peak_memory)  # of RAM where there is no GPU


def report(model: str, shape: str | None, device: str, size_px: int) -> Iterator[str]:
    """Lines for an issue. They name no folder. `shape` is one of `shapes.SHAPES` instead of a model, or None.

    Each part that fails is reported with its error; ModelError only for a device or a model that cannot be opened.
    """
    place = loading.pick_device(device)
    yield from diagnosis.about(place)
    opened = _open(model, shape, device, "auto")
    size_px = size_px or opened.default_size_px
    yield from diagnosis.about_model(opened, size_px)
    for mode in diagnosis.modes_for(place):
        yield f"  {mode:<14}{diagnosis.measured(opened, size_px, mode, PEAK)}"
    opened.use_all_memory()
    del opened  # two models may be too much for the device
    for each in PRECISIONS:
        yield f"  {each:<14}{_gradient(model, shape, device, size_px, each)}"
    yield f"torch.compile: {diagnosis.compiling(place)}"


def _open(model: str, shape: str | None, device: str, precision: str) -> DiffusersModel:
    if shape is not None:
        return shapes.random_model(shape, device, precision)
    return loading.load(model, device, ModelOptions(precision))


def _gradient(model: str, shape: str | None, device: str, size_px: int, precision: str) -> str:
    """Whether training works in this precision."""
    try:
        opened = _open(model, shape, device, precision)
        found = diagnosis.learned(opened, size_px)
        opened.use_all_memory()
    except (RuntimeError, TITrainerError) as error:
        return f"failed: {diagnosis.first_line(error)}"
    return found
