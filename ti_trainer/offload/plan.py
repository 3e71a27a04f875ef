"""Estimates the GPU memory of a training step, and chooses the cheapest measures that make it fit.

B batch, H W latent height and width; B H W is the number of latent pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from ti_trainer.model import MemoryMode

KIB, GIB = 2**10, 2**30
# Bytes of activations that a U-Net keeps in half precision, by latent pixel: without and with gradient checkpointing of all
# blocks. Counted 2026-11-21 for the published shapes, as tensors saved for backward with frozen weights and attention that
# keeps no scores (batch 1 and more, 512 to 1024 px: all grow alike).
ACTIVATIONS = {"SD 1.x": 176 * KIB, "SD 2.x": 165 * KIB, "SDXL": 316 * KIB}
ACTIVATIONS_UNDER_AUTOCAST = {"SD 1.x": 220 * KIB, "SD 2.x": 240 * KIB, "SDXL": 380 * KIB}  # some are kept in float32
ACTIVATIONS_CHECKPOINTED = {"SD 1.x": 36 * KIB, "SD 2.x": 25 * KIB, "SDXL": 30 * KIB}
# The same of a VAE's decoder, by latent pixel of the images that are decoded together.
DECODER_ACTIVATIONS, DECODER_ACTIVATIONS_CHECKPOINTED = 711 * KIB, 440 * KIB
# What encoding and decoding without a gradient take at most, in float32 by latent pixel. Simulated 2026-11-30: 161, 192 KiB.
ENCODING, DECODING = 185 * KIB, 220 * KIB
MARGIN = 0.1  # of all activations: how much more of them is checkpointed than the estimate asks for
# What a step needs besides, by latent pixel: the block that is being computed. Simulated 2026-11-30, by
# docs/simulate_memory.py: 18 KiB without and 27 KiB with checkpointing, for SD 1.5 at 512 px and SDXL at 1024 px.
WORKING = 28 * KIB
OVERHEAD = 0.5 * GIB  # the kernels' workspace and fragmentation; an estimate: a step that runs out of memory is repeated


def free_bytes(device: torch.device) -> int:
    """Free memory of a CUDA device, with what torch's allocator holds in reserve."""
    index = torch.cuda.current_device() if device.index is None else device.index  # torch 2.1 needs a number
    free, _ = torch.cuda.mem_get_info(index)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


@dataclass(frozen=True)
class MemoryNeed:
    """The memory of a training step and what can be saved, in bytes.

    `free` is what is left beside the weights. A step keeps `activations`, or `checkpointed` if all blocks are checkpointed.
    Offloading frees `vae`, `unet_blocks` and `text_blocks`; the largest block has `largest_block`. Storing all blocks in 8
    bits frees `eight_bit_saving`.
    """

    free: int
    activations: float
    checkpointed: float
    vae: int = 0
    unet_blocks: int = 0
    text_blocks: int = 0
    largest_block: int = 0
    eight_bit_saving: int = 0


@dataclass(frozen=True)
class MemoryPlan:
    """The measures that save memory.

    `checkpointing` is the fraction, 0 to 1, of activations that are computed again instead of kept. `offload` says which
    blocks keep their weights in RAM, and `eight_bit` whether all blocks keep them in 8 bits.
    """

    offload_vae: bool = False
    checkpointing: float = 0.0
    offload: Literal["none", "text", "all"] = "none"
    eight_bit: bool = False

    def next(self, *, may_offload_vae: bool, may_offload_weights: bool = True) -> MemoryPlan | None:
        """This plan with one more measure, the one that costs least time; None if there is no other."""
        if may_offload_vae and not self.offload_vae:
            return replace(self, offload_vae=True)
        if self.checkpointing < 1:
            return replace(self, checkpointing=1.0)
        if self.offload == "all" or not may_offload_weights:
            return None
        return replace(self, offload="text" if self.offload == "none" else "all")

    def bytes_needed(self, need: MemoryNeed) -> tuple[float, float]:
        """What a step takes with this plan, and what is free for it."""
        offloaded = {"none": 0, "text": need.text_blocks, "all": need.text_blocks + need.unet_blocks}[self.offload]
        freed = max(offloaded, need.eight_bit_saving if self.eight_bit else 0)
        # The next block's weights are there too, but not when most activations are: simulated, 0.05 GB more than without.
        block = need.largest_block if self.offload != "none" or self.eight_bit else 0
        activations = need.activations - self.checkpointing * (need.activations - need.checkpointed)
        return activations + block, need.free + freed + (need.vae if self.offload_vae else 0)

    def __str__(self) -> str:
        """The measures, separated by semicolons; empty if there are none."""
        measures = ["the VAE is kept in RAM"] if self.offload_vae else []
        if self.eight_bit:
            measures.append("weights are stored in 8 bits (nearly as exact)")
        if self.offload != "none":
            whose = "all weights" if self.offload == "all" else "the text encoders' weights"
            measures.append(f"gradient checkpointing, and {whose} are kept in RAM and copied block by block (slow)")
        elif self.checkpointing == 1:
            measures.append("gradient checkpointing (steps take up to 50% longer)")
        elif self.checkpointing:
            measures.append(
                f"gradient checkpointing of {self.checkpointing:.0%} of the network (steps take slightly longer)"
            )
        return "; ".join(measures)


PLANS: dict[MemoryMode, MemoryPlan] = {  # of every mode but auto
    "none": MemoryPlan(),
    "offload-vae": MemoryPlan(offload_vae=True),
    "checkpointing": MemoryPlan(offload_vae=True, checkpointing=1.0),
    "8bit": MemoryPlan(offload_vae=True, checkpointing=1.0, eight_bit=True),
    "offload-text": MemoryPlan(offload_vae=True, checkpointing=1.0, offload="text"),
    "offload-all": MemoryPlan(offload_vae=True, checkpointing=1.0, offload="all"),
}


def bytes_of(*modules: nn.Module, not_on: torch.device | None = None) -> int:
    """The size of these modules' weights, or of those that are not on this kind of device."""
    weights = [each for module in modules for each in module.parameters()]
    return sum(each.numel() * each.element_size() for each in weights if not_on is None or each.device.type != not_on.type)


def estimate(
    family: str,
    latent_pixels: int,
    free: int,
    bytes_per_number: int,
    *,
    autocast: bool = False,
    vae: int = 0,
    decoded: int = 0,
    decoder_bytes_per_number: int = 4,
    unet_blocks: Sequence[nn.Module] = (),
    text_blocks: Sequence[nn.Module] = (),
) -> MemoryNeed:
    """The need of a batch with this many latent pixels (B H W).

    `decoded` latent pixels are decoded together in each step: then the VAE cannot be offloaded. `bytes_per_number` is that
    of the U-Net's activations, `decoder_bytes_per_number` that of the VAE's.
    """

    def bytes_kept(by_family: dict[str, int], decoder: int) -> float:
        unet = latent_pixels * (by_family.get(family, by_family["SD 1.x"]) + WORKING) * bytes_per_number // 2
        return unet + decoded * decoder * decoder_bytes_per_number // 2 + OVERHEAD

    blocks = [*unet_blocks, *text_blocks]
    numbers = sum(each.numel() for block in blocks for each in block.parameters())
    return MemoryNeed(
        free=free,
        activations=bytes_kept(ACTIVATIONS_UNDER_AUTOCAST if autocast else ACTIVATIONS, DECODER_ACTIVATIONS),
        checkpointed=bytes_kept(ACTIVATIONS_CHECKPOINTED, DECODER_ACTIVATIONS_CHECKPOINTED),
        vae=0 if decoded else vae,
        unet_blocks=bytes_of(*unet_blocks),
        text_blocks=bytes_of(*text_blocks),
        largest_block=max(map(bytes_of, blocks), default=0),
        eight_bit_saving=max(0, bytes_of(*blocks) - numbers),
    )


def choose_plan(mode: MemoryMode, need: MemoryNeed) -> tuple[MemoryPlan, str]:
    """The plan of a mode, for auto with no more measures than are needed; and sentences that describe it."""
    plan = _cheapest_plan(need) if mode == "auto" else PLANS[mode]
    if not need.vae:  # it is off the device already, or must stay
        plan = replace(plan, offload_vae=False)
    needed, room = plan.bytes_needed(need)
    message = f"A training step needs about {needed / GIB:.1f} GB of the {room / GIB:.1f} GB of free GPU memory."
    if measures := str(plan):
        message += f" To save memory: {measures}."
    if needed > room:
        message += " It may not fit: use a smaller batch size, width and height, or close other programs that use the GPU."
    return plan, message


def _cheapest_plan(need: MemoryNeed) -> MemoryPlan:
    """The first plan that fits, otherwise the one with all measures."""
    plan = MemoryPlan()
    while True:
        needed, room = plan.bytes_needed(need)
        following = plan.next(may_offload_vae=need.vae > 0)
        if needed <= room or following is None:
            return plan
        fraction = (need.activations - room) / (need.activations - need.checkpointed) + MARGIN
        if following.checkpointing > plan.checkpointing and fraction < 1:
            return replace(plan, checkpointing=fraction)
        plan = following


def ran_out(error: BaseException) -> bool:
    """Whether an error means that memory ran out, by its type or its message."""
    message = str(error).lower()
    return isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or any(
        each in message for each in ("out of memory", "can't allocate memory", "alloc_failed")
    )
