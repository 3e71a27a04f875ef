"""Run another program's training, a number of steps at a time. This file runs in the peer's Python, without ti_trainer.

python peer_driver.py WARM_UP STEPS SCRIPT [ARGUMENTS]: after every turn it prints a line with MARK and JSON; each line on
stdin is the number of steps of the next turn. Steps are counted by the program's own progress bar.
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
    """Wait until the device has finished its work."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    elif torch is not None and torch.backends.mps.is_available():
        torch.mps.synchronize()


def forget_peak() -> None:
    """Reset `peak_memory`, where the system supports that; elsewhere it counts from the start of the process."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> tuple[int, str] | None:
    """Peak memory in bytes and its kind: allocated by torch on the GPU, else the process's RAM. None if unknown."""
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
    """Counts steps, and waits at the end of a turn. The first turn is the warm-up."""

    def __init__(self, warm_up: int, steps: int) -> None:
        self.left, self.steps = warm_up, steps
        self.begun, self.begun_cpu = time.perf_counter(), time.process_time()

    def step_done(self) -> None:
        """At the end of a turn, report it and wait for the next one if there is one."""
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
    """Replace torchvision, which some builds of torch lack, by the few functions that the peers use."""
    for name in ("accelerate", "diffusers", "transformers"):  # these look for torchvision and must not find this one
        with contextlib.suppress(ImportError):  # a peer that needs one reports it
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

    transforms, torchvision = types.ModuleType("torchvision.transforms"), types.ModuleType("torchvision")
    vars(transforms).update(
        RandomHorizontalFlip=lambda p: lambda image: ops.mirror(image) if random.random() < p else image,
        ToTensor=lambda: to_tensor,
        Normalize=lambda mean, std: lambda image: (image - mean[0]) / std[0],
        Compose=composed,
    )
    vars(torchvision)["transforms"] = transforms
    sys.modules.update({"torchvision": torchvision, "torchvision.transforms": transforms})


def main(warm_up: int, steps: int, script: str, arguments: list[str]) -> None:
    """Run the script as if it had been started directly."""
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
