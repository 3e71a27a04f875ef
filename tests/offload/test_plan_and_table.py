"""What auto chooses for GPUs of usual sizes, held against the simulated peaks of the docs: it fits, no faster plan would.

tests/fake_cuda/table.py holds those peaks against the simulation.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ti_trainer.offload.plan import GIB, PLANS, MemoryNeed, MemoryPlan, choose_plan, estimate

sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))
import simulate_memory

FAMILIES = {"sd15": "SD 1.x", "sdxl": "SDXL"}
CONTEXT = 0.5  # GB that CUDA takes before any tensor
MARGIN, TOO_MUCH = 0.6, 0.75  # GB that what is chosen leaves free at least, and what is refused at most
BATCHES = {(shape, size_px, batch) for shape, size_px, batch, _ in simulate_memory.CELLS}


def figures(shape: str, size_px: int, batch: int) -> dict[str, dict[str, float]]:
    """The table's figures by memory mode; it has no row for offload-vae, which is `none` without the VAE."""
    table = simulate_memory.documented()
    found = {mode: table[shape, size_px, batch, mode] for mode in simulate_memory.MODES}
    vae = found["none"]["at_rest"] - found["checkpointing"]["at_rest"]
    found["offload-vae"] = {name: found["none"][name] - vae for name in ("at_rest", "step")}
    return found


def need_of(shape: str, size_px: int, batch: int, card: float) -> MemoryNeed:
    found = figures(shape, size_px, batch)
    rest = {mode: int(each["at_rest"] * GIB) for mode, each in found.items()}
    wanted = estimate(
        FAMILIES[shape],
        batch * (size_px // 8) ** 2,
        int((card - CONTEXT) * GIB) - rest["none"],
        2,
        vae=rest["none"] - rest["offload-vae"],
    )
    return replace(
        wanted,
        text_blocks=rest["checkpointing"] - rest["offload-text"],
        unet_blocks=rest["offload-text"] - rest["offload-all"],
        largest_block=GIB // 11,
    )


def peak(plan: MemoryPlan, found: dict[str, dict[str, float]]) -> float:
    """GB that a step takes with a plan of auto; with a part of the blocks checkpointed, between the rows beside it."""
    if plan.offload != "none":
        return found[f"offload-{plan.offload}"]["step"]
    if not plan.offload_vae:
        return found["none"]["step"]
    none, all_blocks = found["offload-vae"]["step"], found["checkpointing"]["step"]
    return none - plan.checkpointing * (none - all_blocks)


def measures(plan: MemoryPlan) -> tuple[bool, float, int]:
    """Smaller for faster plans."""
    return plan.offload_vae, plan.checkpointing, ("none", "text", "all").index(plan.offload)


@pytest.mark.parametrize("card", [4, 6, 8, 12, 24])
@pytest.mark.parametrize(("shape", "size_px", "batch"), sorted(BATCHES))
def test_what_is_chosen_fits_and_is_the_fastest_that_does(shape: str, size_px: int, batch: int, card: int) -> None:
    found, room = figures(shape, size_px, batch), card - CONTEXT
    chosen, message = choose_plan("auto", need_of(shape, size_px, batch, card))
    if "may not fit" in message:
        assert chosen == PLANS["offload-all"]
        assert peak(chosen, found) + TOO_MUCH > room
    else:
        assert peak(chosen, found) + MARGIN < room
    plans = [PLANS[mode] for mode in ("none", "offload-vae", "checkpointing", "offload-text")]
    faster = [each for each in plans if measures(each) < measures(chosen)]
    assert all(peak(each, found) + TOO_MUCH > room for each in faster), f"{chosen} is slower than needed"


def test_estimates_are_a_little_above_the_simulated_peaks() -> None:
    """A plan that leaves nothing over would run out of memory."""
    for cell, found in simulate_memory.documented().items():
        over = found["estimated"] - found["step"]
        assert 0.4 < over < 0.75 + found["step"] / 5, cell
