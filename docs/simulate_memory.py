"""Prints the memory table of memory-and-speed.md: peaks of training steps by simulation, without a GPU.

python docs/simulate_memory.py [SHAPE SIZE BATCH MODE ...]; Linux with a C++ compiler and the torch of the tests. It takes
about a minute for each row.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
FAKE_CUDA = ROOT / "tests" / "fake_cuda"
ROWS = (
    *(("sd15", 512, batch, mode) for batch in (1, 4) for mode in ("none", "checkpointing", "offload-text", "offload-all")),
    *(("sdxl", 1024, batch, mode) for batch in (1, 4) for mode in ("none", "checkpointing", "offload-text", "offload-all")),
)


def row(shape: str, size_px: int, batch: int, mode: str) -> str:
    """One line of the table; only in a process with the pretended device."""
    import measure

    found = measure.peaks(shape, size_px, batch, mode, preview=batch == 1)
    preview = "" if found.preview is None else f"{found.preview:.1f}"
    figures = (found.loading, found.at_rest, found.step, found.estimated)
    return f"| {shape} | {size_px} | {batch} | `{mode}` | {' | '.join(f'{each:.2f}' for each in figures)} | {preview} |"


def main(arguments: list[str]) -> None:
    """Build the library and run this file with it; or, in that process, print the rows."""
    sys.path[:0] = [str(FAKE_CUDA), str(ROOT / "tests" / "hosts" / "diffusers")]
    if arguments[:1] != ["--preloaded"]:
        import building

        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--preloaded", *arguments]
            subprocess.run(command, env=building.environment(building.built(Path(folder))), check=True)
        return
    rest = arguments[1:]
    rows = [(rest[0], int(rest[1]), int(rest[2]), mode) for mode in rest[3:]] if rest else ROWS
    print("| shape | px | batch | mode | loading | at rest | step | step, estimated | preview |", flush=True)
    for each in rows:
        print(row(*each), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
