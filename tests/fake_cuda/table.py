"""The memory table of the docs is what is simulated, to 5%. `test_fake_cuda.py` runs this file.

Few of its rows, since an SDXL takes 10 s of CPU; `python docs/simulate_memory.py` writes all of them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import measure
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))
import simulate_memory

CELLS: tuple[simulate_memory.Cell, ...] = (("sd15", 512, 4, "checkpointing"), ("sdxl", 1024, 1, "none"))


def test_the_table_has_every_row() -> None:
    assert tuple(simulate_memory.documented()) == simulate_memory.CELLS


@pytest.mark.parametrize("cell", CELLS)
def test_the_table_is_simulated(cell: simulate_memory.Cell) -> None:
    shape, size_px, batch, mode = cell
    found = measure.peaks(shape, size_px, batch, mode)
    wanted = simulate_memory.documented()[cell]
    simulated = {name: getattr(found, name) for name in simulate_memory.FIGURES}
    assert simulated == pytest.approx(wanted, rel=0.05), "run python docs/simulate_memory.py"
