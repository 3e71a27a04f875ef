"""What a training step keeps in a GPU's memory, and what gives way where that is too little. Knows nothing of a run.

How things give way is in offload/streaming.py. H W latent height and width, B batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from ti_trainer.model import MemoryMode

KIB, GIB = 2**10, 2**30
# Bytes that a U-Net keeps in half precision for its way back, by latent place (of B H W): all of it, and if it computes most
# of it again. Counted 2026-11-21 for the published shapes, as tensors saved for backward with frozen weights and attention
# that keeps no scores (batch 1 and more, 512 to 1024 px: they grow alike).
KEPT = {"SD 1.x": 176 * KIB, "SD 2.x": 165 * KIB, "SDXL": 316 * KIB}
KEPT_UNDER_AUTOCAST = {"SD 1.x": 220 * KIB, "SD 2.x": 240 * KIB, "SDXL": 380 * KIB}  # which keeps some in float32
KEPT_RECOMPUTING = {"SD 1.x": 36 * KIB, "SD 2.x": 25 * KIB, "SDXL": 30 * KIB}
# The same of a VAE's decoder, by latent place of the images that are decoded at once.
DECODED, DECODED_RECOMPUTING = 711 * KIB, 440 * KIB
MARGIN = 0.1  # of what blocks keep, more of them are computed twice than would do by count
BESIDES = 1.5 * GIB  # kernels' workspace, the block at hand, and what lies scattered; an estimate


def free_bytes(device: torch.device) -> int:
    """What a CUDA device has left, with what torch keeps in reserve."""
    index = torch.cuda.current_device() if device.index is None else device.index  # torch 2.1 wants to be told
    free, _ = torch.cuda.mem_get_info(index)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


@dataclass(frozen=True)
class Need:
    """What a step would like to have, in bytes, and what may give way.

    `free` is what is left beside the weights, `whole` what a step keeps, `least` the same if all blocks compute it again.
    `vae` comes free if the VAE leaves, `blocks` if the weights of the U-Net's blocks do, `text` if those of the text
    encoders' do, of all which the largest has `largest`, and `by_eight_bit` if they are kept in 8 bits.
    """

    free: int
    whole: float
    least: float
    vae: int = 0
    blocks: int = 0
    text: int = 0
    largest: int = 0
    by_eight_bit: int = 0


@dataclass(frozen=True)
class MemoryPlan:
    """What gives way. `recompute` is the part, 0 to 1, of what blocks keep that is computed again instead.

    `stream`: the weights of the text encoders' blocks, or of all, lie in RAM and come when they are needed. `eight_bit`: of
    all, they lie there, or on the card, in 8 bits.
    """

    vae_in_ram: bool = False
    recompute: float = 0.0
    stream: Literal["", "text", "all"] = ""
    eight_bit: bool = False

    def further(self, *, vae_may_leave: bool, weights_may_leave: bool = True) -> MemoryPlan | None:
        """The next thing gives way, what costs least time first; None if nothing is left."""
        if vae_may_leave and not self.vae_in_ram:
            return replace(self, vae_in_ram=True)
        if self.recompute < 1:
            return replace(self, recompute=1.0)
        if self.stream == "all" or not weights_may_leave:
            return None
        return replace(self, stream="all" if self.stream else "text")

    def bytes_needed(self, need: Need) -> tuple[float, float]:
        """By a step, and what is free for it."""
        streamed = {"": 0, "text": need.text, "all": need.text + need.blocks}[self.stream]
        weights = max(streamed, need.by_eight_bit if self.eight_bit else 0)
        brought = need.largest if self.stream or self.eight_bit else 0
        kept = need.whole - self.recompute * (need.whole - need.least)
        return kept + brought, need.free + weights + (need.vae if self.vae_in_ram else 0)

    def __str__(self) -> str:
        """For people; empty if nothing gives way."""
        said = ["the VAE waits in RAM"] if self.vae_in_ram else []
        if self.eight_bit:
            said.append("the network's weights are kept in 8 bits, nearly as exact")
        if self.stream:
            whose = "all" if self.stream == "all" else "the text encoders'"
            said.append(
                f"the network is computed twice, and {whose} weights wait in RAM and come block by block, which takes long"
            )
        elif self.recompute == 1:
            said.append("the network is computed twice, which takes up to half as long again")
        elif self.recompute:
            said.append(f"{self.recompute:.0%} of the network is computed twice, which takes a little longer")
        return "; ".join(said)


BY_HAND: dict[MemoryMode, MemoryPlan] = {
    "none": MemoryPlan(),
    "offload-vae": MemoryPlan(vae_in_ram=True),
    "checkpointing": MemoryPlan(vae_in_ram=True, recompute=1.0),
    "8bit": MemoryPlan(vae_in_ram=True, recompute=1.0, eight_bit=True),
    "offload-text": MemoryPlan(vae_in_ram=True, recompute=1.0, stream="text"),
    "offload-all": MemoryPlan(vae_in_ram=True, recompute=1.0, stream="all"),
}


def bytes_of(*modules: nn.Module, but_on: torch.device | None = None) -> int:
    """Of their weights, or of those that are not on a kind of device."""
    weights = [each for module in modules for each in module.parameters()]
    return sum(each.numel() * each.element_size() for each in weights if but_on is None or each.device.type != but_on.type)


def need(
    family: str,
    places: int,
    free: int,
    bytes_per_number: int,
    *,
    autocast: bool = False,
    vae: int = 0,
    decoded: int = 0,
    bytes_per_pixel_number: int = 4,
    blocks: Sequence[nn.Module] = (),
    text_blocks: Sequence[nn.Module] = (),
) -> Need:
    """Of batches of this many latent places, where so much is free.

    `decoded` places are decoded at once in each step, by a VAE of so many bytes per number: then it cannot leave. The
    weights of blocks may leave.
    """
    kept = KEPT_UNDER_AUTOCAST if autocast else KEPT
    whole, least = (
        places * table.get(family, table["SD 1.x"]) * bytes_per_number // 2
        + decoded * decoder * bytes_per_pixel_number // 2
        + BESIDES
        for table, decoder in ((kept, DECODED), (KEPT_RECOMPUTING, DECODED_RECOMPUTING))
    )
    everything = [*blocks, *text_blocks]
    numbers = sum(each.numel() for block in everything for each in block.parameters())
    return Need(
        free=free,
        whole=whole,
        least=least,
        vae=0 if decoded else vae,
        blocks=bytes_of(*blocks),
        text=bytes_of(*text_blocks),
        largest=max(map(bytes_of, everything), default=0),
        by_eight_bit=max(0, bytes_of(*everything) - numbers),
    )


def plan(mode: MemoryMode, need: Need) -> tuple[MemoryPlan, str]:
    """What gives way, by itself only as much as has to; and in words."""
    chosen = _by_itself(need) if mode == "auto" else BY_HAND[mode]
    if not need.vae:  # it leaves anyway, or cannot
        chosen = replace(chosen, vae_in_ram=False)
    wanted, room = chosen.bytes_needed(need)
    words = f"About {wanted / GIB:.1f} GB of {room / GIB:.1f} GB of free GPU memory will be used for a step"
    if str(chosen):
        words += f"; {chosen}"
    if wanted > room:
        words += ". That may be too much: use a smaller batch size, width and height, or close what else uses the GPU"
    return chosen, words + "."


def _by_itself(need: Need) -> MemoryPlan:
    """The first that fits, else the last there is."""
    chosen = MemoryPlan()
    while True:
        wanted, room = chosen.bytes_needed(need)
        further = chosen.further(vae_may_leave=need.vae > 0)
        if wanted <= room or further is None:
            return chosen
        part = (need.whole - room) / (need.whole - need.least) + MARGIN
        if further.recompute > chosen.recompute and part < 1:
            return replace(chosen, recompute=part)
        chosen = further


def sentence(words: str) -> str:
    """Of words without a full stop; empty for none."""
    return f"{words[:1].upper()}{words[1:]}." if words else ""


def ran_out(error: BaseException) -> bool:
    """Whether memory ran out, whoever says so."""
    said = str(error).lower()
    return isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or any(
        each in said for each in ("out of memory", "can't allocate memory", "alloc_failed")
    )
