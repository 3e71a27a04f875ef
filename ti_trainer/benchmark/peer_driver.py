"""Runs another program's training, some steps at a time. Knows no ti_trainer: it runs in the peer's Python.

python peer_driver.py WARM_UP STEPS SCRIPT [ARGUMENTS]: after every turn there is a line on stdout, MARK and JSON; each line
on stdin is the number of steps of the next turn. Steps are counted by the program's own progress bar.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import random
import re
import runpy
import sys
import time
import types
from pathlib import Path
from typing import Any

MARK = "@bench "


def synchronize() -> None:
    """Wait until the device has done what it was told."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    elif torch is not None and torch.backends.mps.is_available():
        torch.mps.synchronize()


def forget_peak() -> None:
    """From here on `peak_memory` counts, where the system can do that; elsewhere it counts from the process's start."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> tuple[int, str] | None:
    """Bytes at their most, and of what: what torch allocated on the GPU, else the process's in RAM. None: not known here."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated(), "GPU"
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) * 1024, "RAM"
    try:
        resource = importlib.import_module("resource")
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024), "RAM"


class Turns:
    """Counts steps, and waits where a turn is over. The first turn is the warm-up."""

    def __init__(self, warm_up: int, steps: int) -> None:
        self.left, self.steps = warm_up, steps
        self.begun, self.begun_cpu = time.perf_counter(), time.process_time()

    def step_done(self) -> None:
        """Say so if the turn is over, and wait for the next one if there is one."""
        self.left -= 1
        if self.left:
            return
        synchronize()
        wall, cpu = time.perf_counter() - self.begun, time.process_time() - self.begun_cpu
        sys.stdout.write(f"\n{MARK}{json.dumps({'wall': wall, 'cpu': cpu, 'memory': peak_memory()})}\n")
        sys.stdout.flush()
        if self.steps:
            self.left = int(sys.stdin.readline())
            self.steps -= self.left
            forget_peak()
            self.begun, self.begun_cpu = time.perf_counter(), time.process_time()


def stand_in_for_torchvision() -> None:
    """Some builds of torch have none; of it the peers want a few things only, which Pillow and torch can do."""
    for name in ("accelerate", "diffusers", "transformers"):  # these look for it, and shall not find this one
        with contextlib.suppress(ImportError):  # a peer that needs one says so itself
            importlib.import_module(name)
    torch, ops = importlib.import_module("torch"), importlib.import_module("PIL.ImageOps")

    def to_tensor(image: Any) -> Any:
        pixels = torch.from_numpy(importlib.import_module("numpy").array(image))
        return pixels.permute(2, 0, 1).contiguous().float() / 255

    def composed(parts: list[Any]) -> Any:
        def apply(image: Any) -> Any:
            for each in parts:
                image = each(image)
            return image

        return apply

    transforms = types.ModuleType("torchvision.transforms")
    transforms.RandomHorizontalFlip = lambda p: lambda image: ops.mirror(image) if random.random() < p else image
    transforms.ToTensor = lambda: to_tensor
    transforms.Normalize = lambda mean, std: lambda image: (image - mean[0]) / std[0]
    transforms.Compose = composed
    torchvision = types.ModuleType("torchvision")
    torchvision.transforms = transforms
    sys.modules.update({"torchvision": torchvision, "torchvision.transforms": transforms})


def main(warm_up: int, steps: int, script: str, arguments: list[str]) -> None:
    """Run it as if it had been called itself."""
    turns = Turns(warm_up, steps)
    bars = importlib.import_module("tqdm").tqdm
    update = bars.update

    def counted(self: Any, n: float | None = 1) -> Any:
        result = update(self, n)
        if (self.desc or "").lower().startswith("steps"):
            turns.step_done()
        return result

    bars.update = counted
    sys.path[0] = str(Path(script).parent)
    try:
        importlib.import_module("torchvision")
    except ImportError:
        stand_in_for_torchvision()
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
