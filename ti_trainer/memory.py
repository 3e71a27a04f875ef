"""What a training step keeps in a GPU's memory, and what gives way where that is too little. Knows nothing of a run.

H W latent height and width, B batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

KIB, GIB = 2**10, 2**30
# Bytes that a U-Net keeps in half precision for its way back, by latent place (of B H W): all of it, and if it computes most
# of it again. Counted 2026-11-21 for the published shapes, as tensors saved for backward with frozen weights and attention
# that keeps no scores (batch 1 and more, 512 to 1024 px: they grow alike).
KEPT = {"SD 1.x": 176 * KIB, "SD 2.x": 165 * KIB, "SDXL": 316 * KIB}
KEPT_UNDER_AUTOCAST = {"SD 1.x": 220 * KIB, "SD 2.x": 240 * KIB, "SDXL": 380 * KIB}  # which keeps some in float32
KEPT_RECOMPUTING = {"SD 1.x": 36 * KIB, "SD 2.x": 25 * KIB, "SDXL": 30 * KIB}
# The same of a VAE's decoder, by latent place of the pictures that are decoded at once.
DECODED, DECODED_RECOMPUTING = 711 * KIB, 440 * KIB
BESIDES = 1.5 * GIB  # kernels' workspace, the block at hand, and what lies scattered; an estimate


def free_bytes(device: torch.device) -> int:
    """What a CUDA device has left, with what torch keeps in reserve."""
    index = torch.cuda.current_device() if device.index is None else device.index  # torch 2.1 wants to be told
    free, _ = torch.cuda.mem_get_info(index)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


@dataclass(frozen=True)
class MemoryPlan:
    """Whether the VAE waits in RAM, and whether the U-Net computes again what it does not keep; in words."""

    vae_in_ram: bool
    recompute: bool
    words: str


def bytes_of(*modules: nn.Module, but_on: torch.device | None = None) -> int:
    """Of their weights, or of those that are not on a kind of device."""
    weights = [each for module in modules for each in module.parameters()]
    return sum(each.numel() * each.element_size() for each in weights if but_on is None or each.device.type != but_on.type)


def plan(
    family: str,
    places: int,
    free: int,
    vae: int,
    bytes_per_number: int,
    *,
    autocast: bool = False,
    decoded: int = 0,
    bytes_per_pixel_number: int = 4,
) -> MemoryPlan:
    """How batches of this many latent places fit into this much free memory, and `vae` more if the VAE leaves it.

    `decoded` places are decoded at once in each step, by a VAE of so many bytes per number: then it cannot leave.
    """
    vae = 0 if decoded else vae
    kept = KEPT_UNDER_AUTOCAST if autocast else KEPT
    whole, least = (
        places * table.get(family, table["SD 1.x"]) * bytes_per_number // 2
        + decoded * decoder * bytes_per_pixel_number // 2
        + BESIDES
        for table, decoder in ((kept, DECODED), (KEPT_RECOMPUTING, DECODED_RECOMPUTING))
    )
    vae_in_ram = vae > 0 and whole > free
    recompute = whole > free + vae
    need, room = (least if recompute else whole), free + (vae if vae_in_ram else 0)
    words = f"About {need / GIB:.1f} GB of {room / GIB:.1f} GB of free GPU memory will be used for a step"
    if vae_in_ram:
        words += "; the VAE waits in RAM"
    if recompute:
        words += "; parts of the network are computed twice, which takes up to half as long again"
    if need > room:
        words += ". That may be too much: use a smaller batch size, width and height, or close what else uses the GPU"
    return MemoryPlan(vae_in_ram, recompute, words + ".")
