"""Peak memory and time of steps on this GPU in each memory mode, beside the simulated peaks of docs/memory-and-speed.md.

python tests/gpu/peaks.py sd15 | sdxl; random weights in the full shape, fp16. `run_all.py` runs it. With --dry one row on
the CPU with the embedded model, which has no peaks.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import simulate_memory  # noqa: E402

from ti_trainer.host import GenerationRequest, ModelOptions  # noqa: E402
from ti_trainer.hosts.diffusers import loading, sampling, shapes  # noqa: E402
from ti_trainer.hosts.diffusers.model import DiffusersModel  # noqa: E402
from ti_trainer.model import MemoryMode  # noqa: E402
from ti_trainer.offload.plan import GIB  # noqa: E402
from ti_trainer.training.events import MemoryReduced, StepDone  # noqa: E402
from ti_trainer.workbench import diagnosis  # noqa: E402

STEPS = 4
Figures = dict[str, float]


def peak(model: DiffusersModel) -> float:
    """GB since the last call; NaN without a GPU."""
    if model.device.type != "cuda":
        return float("nan")
    found = torch.cuda.max_memory_allocated(model.device) / GIB
    torch.cuda.reset_peak_memory_stats(model.device)
    return found


def measured(model: DiffusersModel, size_px: int, batch: int, mode: MemoryMode) -> tuple[Figures, str]:
    """What measure.Peaks has, and besides the first step's peak and the milliseconds of a step; and what went wrong."""
    message, found = model.fit_memory(batch * (size_px // 8) ** 2, mode=mode), Figures()
    peak(model)
    found["at_rest"] = torch.cuda.memory_allocated() / GIB if model.device.type == "cuda" else float("nan")
    times, problem = [], "it may not fit" if "may not fit" in message else ""
    with closing(diagnosis.trainer_of(model, size_px, STEPS, batch).run()) as run:
        for event in run:
            if isinstance(event, MemoryReduced):
                problem = event.message
            elif isinstance(event, StepDone):
                float(event.loss)  # waits for the GPU
                times.append(time.perf_counter())
                found["first step" if len(times) == 1 else "step"] = peak(model)
    found["ms"] = 1000 * (times[-1] - times[0]) / (len(times) - 1)
    sampling.generate(model, GenerationRequest("a photo", steps=1, width=size_px, height=size_px), {})
    found["preview"] = peak(model)
    return found, problem


def row(cell: simulate_memory.Cell, found: Figures, simulated: Figures, problem: str) -> str:
    """A line with measured and simulated figures."""
    shape, _, batch, mode = cell
    both = (f"{name} {found[name]:.2f} ({simulated[name]:.2f})" for name in ("at_rest", "step", "preview"))
    facts = [*both, f"first step {found['first step']:.2f}", f"{found['ms']:.0f} ms", *filter(None, [problem])]
    return f"{shape}, batch {batch}, {mode:<13}: {', '.join(facts)}"


def rows(shape: str) -> Iterator[str]:
    """Lines for a shape; each cell that fails says why."""
    table = simulate_memory.documented()
    cells = [each for each in table if each[0] == shape]
    size_px = cells[0][1]
    model = shapes.random_model(shape, "cuda", "fp16")
    peak(model)
    with torch.no_grad():
        model.encode_images(torch.zeros(1, 3, size_px, size_px))
    yield f"{shape}, encoding an image: {peak(model):.2f} ({table[cells[0]]['encoding']:.2f})"
    for cell in cells:
        try:
            found, problem = measured(model, size_px, cell[2], cell[3])
            yield row(cell, found, table[cell], problem)
        except (RuntimeError, ValueError) as error:
            yield f"{shape}, batch {cell[2]}, {cell[3]}: failed: {diagnosis.first_line(error)}"
        model.use_all_memory()


def main(arguments: list[str]) -> None:
    """Print the lines."""
    print("GB measured (simulated):", flush=True)
    if arguments == ["--dry"]:
        model, nothing = loading.load("embedded", "cpu", ModelOptions("fp32")), dict.fromkeys(simulate_memory.FIGURES, 0.0)
        found, problem = measured(model, 64, 4, "checkpointing")
        print(row(("embedded", 64, 4, "checkpointing"), found, nothing, problem))
        return
    for line in rows(arguments[0]):
        print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
