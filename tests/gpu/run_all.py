"""Everything to run on a GPU, in about 10 minutes: tests, the report of `doctor`, and speed beside other loops.

python tests/gpu/run_all.py [--sdxl]; paste the output into an issue. With --sdxl also SDXL's shape at 1024 px, which needs
16 GB of RAM.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
SHAPES = {"sd15": 512, "sdxl": 1024}


def commands(*, sdxl: bool) -> list[list[str]]:
    """The command lines, without Python."""
    found = [["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/gpu"]]
    for shape, size_px in SHAPES.items() if sdxl else [("sd15", SHAPES["sd15"])]:
        shaped = ["--shape", shape, "--size", str(size_px)]
        found.append(["-m", "ti_trainer", "doctor", *shaped])
        bench = ["-m", "ti_trainer", "bench", *shaped, "--steps", "30", "--batch-sizes", "1", "4"]
        found.append([*bench, "--compile", "--against", "webui"] if shape == "sd15" else bench)
    return found


def main() -> int:
    """Run all of them, whatever fails; returns how many failed."""
    if not torch.cuda.is_available():
        print("There is no GPU that this PyTorch can use. `ti-trainer doctor` says why.")
        return 1
    failed = 0
    for each in commands(sdxl="--sdxl" in sys.argv[1:]):
        print("$ python", *each, flush=True)
        failed += bool(subprocess.run([sys.executable, *each], cwd=ROOT, check=False).returncode)
    print(f"{failed} of the commands failed.")
    return failed


if __name__ == "__main__":
    sys.exit(main())
