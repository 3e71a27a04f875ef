"""What gives way depends on the free memory: as little as will do, and what costs least time first."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from ti_trainer.offload.plan import BESIDES, BY_HAND, GIB, MemoryPlan, Need, need, plan, ran_out

SDXL_1024 = 128 * 128
VAE = GIB // 3


def sdxl(free: float, batch: int = 1) -> Need:
    """In half precision at 1024 px, whose U-Net has 4.7 GB in blocks of up to 94 MB."""
    wanted = need("SDXL", batch * SDXL_1024, int(free * GIB), 2, vae=VAE)
    return replace(wanted, blocks=int(4.7 * GIB), text=int(2.9 * GIB), largest=GIB // 11, by_eight_bit=int(4.5 * GIB))


@pytest.mark.parametrize(
    ("free", "chosen", "said"),
    [
        (12, MemoryPlan(), "About 6.4 GB of 12.0 GB of free GPU memory will be used for a step."),
        (6.3, MemoryPlan(vae_in_ram=True), "used for a step; the VAE waits in RAM."),
        (2.0, MemoryPlan(vae_in_ram=True, recompute=1.0), "the VAE waits in RAM; the network is computed twice"),
        (1, MemoryPlan(vae_in_ram=True, recompute=1.0, stream="text"), "About 2.1 GB of 4.2 GB"),
        (-3, MemoryPlan(vae_in_ram=True, recompute=1.0, stream="all"), "About 2.1 GB of 4.9 GB"),
    ],
)
def test_what_gives_way_depends_on_the_free_memory(free: float, chosen: MemoryPlan, said: str) -> None:
    found, words = plan("auto", sdxl(free))
    assert found == chosen
    assert said in words


def test_only_as_much_is_computed_twice_as_has_to_be() -> None:
    parts = [plan("auto", sdxl(free))[0].recompute for free in (6.0, 5.0, 4.0, 3.0, 2.5)]
    assert parts == sorted(parts)
    assert 0 < parts[0] < 0.25
    assert parts[-1] < 1
    assert "19% of the network is computed twice" in plan("auto", sdxl(5.7))[1]


def test_whatever_is_free_it_fits_or_all_has_given_way() -> None:
    for free, batch in itertools.product((-6, -3, 0.1, 0.5, 1, 2, 3, 4, 6, 8, 12, 24), (1, 2, 4, 8)):
        chosen, words = plan("auto", sdxl(free, batch))
        wanted, room = chosen.bytes_needed(sdxl(free, batch))
        assert (wanted <= room) == ("may be too much" not in words)
        assert wanted <= room or chosen == BY_HAND["offload-all"]


def test_what_is_chosen_by_hand_is_done() -> None:
    for mode, wanted in BY_HAND.items():
        assert plan(mode, sdxl(24))[0] == plan(mode, sdxl(0.5))[0] == wanted
    assert "kept in 8 bits" in plan("8bit", sdxl(6))[1]
    chosen, words = plan("offload-vae", need("SDXL", SDXL_1024, 24 * GIB, 2, vae=VAE, decoded=4096))
    assert chosen == MemoryPlan(), "pixels are compared: it cannot leave"
    assert "VAE" not in words


def test_a_smaller_model_and_smaller_batches_need_less() -> None:
    def recomputes(family: str, places: int, free: int, bytes_per_number: int) -> bool:
        return plan("auto", need(family, places, free, bytes_per_number))[0].recompute > 0

    assert recomputes("SDXL", 4 * SDXL_1024, 12 * GIB, 2)
    assert not recomputes("SD 1.x", 64 * 64, 3 * GIB, 2)
    assert recomputes("SD 1.x", 4 * 64 * 64, 3 * GIB, 4)


def test_weights_of_blocks_are_counted() -> None:
    blocks = [torch.nn.Linear(1000, 1000, bias=False).half(), torch.nn.Linear(3000, 1000, bias=False).half()]
    found = need("SD 1.x", 0, 0, 2, blocks=blocks[:1], text_blocks=blocks[1:])
    assert (found.blocks, found.text, found.largest) == (2_000_000, 6_000_000, 6_000_000)
    assert (found.by_eight_bit, found.least) == (4_000_000, BESIDES)


def test_one_thing_after_another_gives_way_until_nothing_is_left() -> None:
    steps, chosen = [], MemoryPlan(recompute=0.3)
    while chosen := chosen.further(vae_may_leave=True):
        steps.append(chosen)
    assert steps == [
        MemoryPlan(vae_in_ram=True, recompute=0.3),
        MemoryPlan(vae_in_ram=True, recompute=1.0),
        MemoryPlan(vae_in_ram=True, recompute=1.0, stream="text"),
        MemoryPlan(vae_in_ram=True, recompute=1.0, stream="all"),
    ]
    assert BY_HAND["8bit"].further(vae_may_leave=True) == MemoryPlan(True, 1.0, stream="text", eight_bit=True)
    assert MemoryPlan().further(vae_may_leave=False) == MemoryPlan(recompute=1.0)


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_running_out_is_told_from_other_errors(error: Exception, is_it: bool) -> None:
    assert ran_out(error) == is_it
