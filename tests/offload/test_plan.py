"""The memory plan: the measures that cost least time, and no more than necessary."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from ti_trainer.offload.plan import GIB, OVERHEAD, PLANS, MemoryNeed, MemoryPlan, choose_plan, estimate, ran_out

SDXL_1024 = 128 * 128
VAE = GIB // 3


def sdxl(free: float, batch: int = 1) -> MemoryNeed:
    """In half precision at 1024 px, whose U-Net has 4.7 GB in blocks of up to 94 MB."""
    wanted = estimate("SDXL", batch * SDXL_1024, int(free * GIB), 2, vae=VAE)
    return replace(
        wanted,
        unet_blocks=int(4.7 * GIB),
        text_blocks=int(2.9 * GIB),
        largest_block=GIB // 11,
        eight_bit_saving=int(4.5 * GIB),
    )


@pytest.mark.parametrize(
    ("free", "chosen", "said"),
    [
        (12, MemoryPlan(), "A training step needs about 5.9 GB of the 12.0 GB of free GPU memory."),
        (5.7, MemoryPlan(offload_vae=True), "GPU memory. To save memory: the VAE is kept in RAM."),
        (1.2, MemoryPlan(offload_vae=True, checkpointing=1.0), "the VAE is kept in RAM; gradient checkpointing (steps"),
        (1, MemoryPlan(offload_vae=True, checkpointing=1.0, offload="text"), "about 1.5 GB of the 4.2 GB"),
        (-3, MemoryPlan(offload_vae=True, checkpointing=1.0, offload="all"), "about 1.5 GB of the 4.9 GB"),
    ],
)
def test_the_plan_depends_on_the_free_memory(free: float, chosen: MemoryPlan, said: str) -> None:
    found, message = choose_plan("auto", sdxl(free))
    assert found == chosen
    assert said in message


def test_no_more_is_checkpointed_than_necessary() -> None:
    parts = [choose_plan("auto", sdxl(free))[0].checkpointing for free in (5.5, 4.5, 3.5, 2.5, 2.0)]
    assert parts == sorted(parts)
    assert 0 < parts[0] < 0.25
    assert parts[-1] < 1
    assert "gradient checkpointing of 18% of the network" in choose_plan("auto", sdxl(5.2))[1]


def test_a_plan_fits_or_has_all_measures() -> None:
    for free, batch in itertools.product((-6, -3, 0.1, 0.5, 1, 2, 3, 4, 6, 8, 12, 24), (1, 2, 4, 8)):
        chosen, message = choose_plan("auto", sdxl(free, batch))
        wanted, room = chosen.bytes_needed(sdxl(free, batch))
        assert (wanted <= room) == ("may not fit" not in message)
        assert wanted <= room or chosen == PLANS["offload-all"]


def test_a_chosen_mode_does_not_depend_on_the_free_memory() -> None:
    for mode, wanted in PLANS.items():
        assert choose_plan(mode, sdxl(24))[0] == choose_plan(mode, sdxl(0.5))[0] == wanted
    assert "stored in 8 bits" in choose_plan("8bit", sdxl(6))[1]
    chosen, message = choose_plan("offload-vae", estimate("SDXL", SDXL_1024, 24 * GIB, 2, vae=VAE, decoded=4096))
    assert chosen == MemoryPlan(), "a loss on pixels needs it"
    assert "VAE" not in message


def test_a_smaller_model_and_smaller_batches_need_less() -> None:
    def is_checkpointed(family: str, latent_pixels: int, free: int, bytes_per_number: int) -> bool:
        return choose_plan("auto", estimate(family, latent_pixels, free, bytes_per_number))[0].checkpointing > 0

    assert is_checkpointed("SDXL", 4 * SDXL_1024, 12 * GIB, 2)
    assert not is_checkpointed("SD 1.x", 64 * 64, 3 * GIB, 2)
    assert is_checkpointed("SD 1.x", 4 * 64 * 64, 3 * GIB, 4)


def test_weights_of_blocks_are_counted() -> None:
    blocks = [torch.nn.Linear(1000, 1000, bias=False).half(), torch.nn.Linear(3000, 1000, bias=False).half()]
    found = estimate("SD 1.x", 0, 0, 2, unet_blocks=blocks[:1], text_blocks=blocks[1:])
    assert (found.unet_blocks, found.text_blocks, found.largest_block) == (2_000_000, 6_000_000, 6_000_000)
    assert (found.eight_bit_saving, found.checkpointed) == (4_000_000, OVERHEAD)


def test_measures_are_added_one_after_another_until_none_is_left() -> None:
    steps, chosen = [], MemoryPlan(checkpointing=0.3)
    while chosen := chosen.next(may_offload_vae=True):
        steps.append(chosen)
    assert steps == [
        MemoryPlan(offload_vae=True, checkpointing=0.3),
        MemoryPlan(offload_vae=True, checkpointing=1.0),
        MemoryPlan(offload_vae=True, checkpointing=1.0, offload="text"),
        MemoryPlan(offload_vae=True, checkpointing=1.0, offload="all"),
    ]
    assert PLANS["8bit"].next(may_offload_vae=True) == MemoryPlan(True, 1.0, offload="text", eight_bit=True)
    assert MemoryPlan().next(may_offload_vae=False) == MemoryPlan(checkpointing=1.0)


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
def test_running_out_of_memory_is_recognised(error: Exception, is_it: bool) -> None:
    assert ran_out(error) == is_it
