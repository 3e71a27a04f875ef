"""What a training step keeps in a GPU's memory, and what gives way where that is too little. Knows nothing of a run.

H W latent height and width, B batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

KIB, GIB = 2**10, 2**30
# Bytes that a U-Net keeps in half precision for its way back, by latent place (of B H W): all of it, and if it computes most
# of it again. Counted 2026-11-21 for the published shapes, as tensors saved for backward with frozen weights and attention
# that keeps no scores (batch 1 and more, 512 to 1024 px: they grow alike).
KEPT = {"SD 1.x": 176 * KIB, "SD 2.x": 165 * KIB, "SDXL": 316 * KIB}
KEPT_RECOMPUTING = {"SD 1.x": 36 * KIB, "SD 2.x": 25 * KIB, "SDXL": 30 * KIB}
BESIDES = 1.5 * GIB  # kernels' workspace, the block at hand, and what lies scattered; an estimate


def free_bytes(device: torch.device) -> int:
    """What a CUDA device has left, with what torch keeps in reserve."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


@dataclass(frozen=True)
class MemoryPlan:
    """Whether the VAE waits in RAM, and whether the U-Net computes again what it does not keep; in words."""

    vae_in_ram: bool
    recompute: bool
    words: str


def plan(family: str, places: int, free: int, vae: int, bytes_per_number: int) -> MemoryPlan:
    """How batches of this many latent places fit into this much free memory, `vae` of it being freed if the VAE leaves."""
    whole, least = (
        places * table.get(family, table["SD 1.x"]) * bytes_per_number // 2 + BESIDES for table in (KEPT, KEPT_RECOMPUTING)
    )
    vae_in_ram = vae > 0 and whole > free
    recompute = whole > free + vae
    need, room = (least if recompute else whole), free + (vae if vae_in_ram else 0)
    words = f"About {need / GIB:.1f} GB of {room / GIB:.1f} GB of free GPU memory will be used for a step"
    if vae_in_ram:
        words += "; the VAE waits in RAM"
    if recompute:
        words += "; parts of the U-Net are computed twice, which takes up to half as long again"
    if need > room:
        words += ". That may be too much: use a smaller batch size, width and height, or close what else uses the GPU"
    return MemoryPlan(vae_in_ram, recompute, words + ".")
