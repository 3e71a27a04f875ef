"""Writes the memory table of memory-and-speed.md: peaks by simulation, without a GPU.

python docs/simulate_memory.py [SHAPE SIZE BATCH MODE ...]: with arguments only prints these rows. Linux with a C++ compiler
and the torch of the tests. It takes about 10 s of CPU for each of the 16 rows. tests/fake_cuda/table.py checks some of them.
"""

from __future__ import annotations

import datetime
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "memory-and-speed.md"
FAKE_CUDA = ROOT / "tests" / "fake_cuda"
NAMES = {"sd15": "SD 1.5", "sdxl": "SDXL"}
MODES = ("none", "checkpointing", "offload-text", "offload-all")
Cell = tuple[str, int, int, str]  # shape, width and height in px, batch size, memory mode
CELLS: tuple[Cell, ...] = tuple(
    (shape, size_px, batch, mode) for shape, size_px in (("sd15", 512), ("sdxl", 1024)) for batch in (1, 4) for mode in MODES
)
FIGURES = ("encoding", "at_rest", "step", "estimated", "preview")  # of measure.Peaks, in the table's order
TITLES = ("encoding an image", "between steps", "in a step", "estimate for a step", "a preview, untiled")
HEAD = f"| model | batch | mode | {' | '.join(TITLES)} |\n|{'---|' * (3 + len(TITLES))}\n"
ROW = re.compile(
    r"^\| (?P<name>.+), (?P<size_px>\d+) px \| (?P<batch>\d+) \| `(?P<mode>[\w-]+)` \|(?P<figures>[ \d.|]+)\|$", re.M
)


def documented() -> dict[Cell, dict[str, float]]:
    """The page's table: GB by cell and figure."""
    found, shapes = {}, {name: shape for shape, name in NAMES.items()}
    for row in ROW.finditer(PAGE.read_text(encoding="utf-8")):
        figures = map(float, row["figures"].split("|"))
        cell = shapes[row["name"]], int(row["size_px"]), int(row["batch"]), row["mode"]
        found[cell] = dict(zip(FIGURES, figures, strict=True))
    return found


def row(cell: Cell) -> str:
    """One line of the table; only in a process with the pretended device."""
    import measure

    shape, size_px, batch, mode = cell
    found = measure.peaks(shape, size_px, batch, mode)
    figures = " | ".join(f"{getattr(found, name):.2f}" for name in FIGURES)
    return f"| {NAMES[shape]}, {size_px} px | {batch} | `{mode}` | {figures} |"


def printed(cells: list[str]) -> Iterator[str]:
    """The table's lines, each printed as it is measured in a process with the pretended device."""
    import building

    command = [sys.executable, __file__, "--preloaded", *cells]
    with subprocess.Popen(command, env=building.environment(), stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            yield line
    if process.returncode:
        sys.exit(process.returncode)


def main(arguments: list[str]) -> None:
    """Build the library and run this file with it; or, in that process, print the rows."""
    sys.path[:0] = [str(FAKE_CUDA), str(ROOT / "tests" / "hosts" / "diffusers")]
    if arguments[:1] == ["--preloaded"]:
        rest = arguments[1:]
        cells = [(rest[0], int(rest[1]), int(rest[2]), mode) for mode in rest[3:]] if rest else CELLS
        print(HEAD, end="", flush=True)
        for cell in cells:
            print(row(cell), flush=True)
        return
    table = "".join(printed(arguments))
    if not arguments:
        page = PAGE.read_text(encoding="utf-8")
        start, end = page.index("| model | batch | mode |"), list(ROW.finditer(page))[-1].end() + 1
        page = page[:start] + table + page[end:]
        page = re.sub(r"simulated on [\d-]+", f"simulated on {datetime.date.today()}", page)
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
