"""A model's VAE: on the device while it computes, in half precision on CUDA where it can, in tiles where memory is short.

B batch, C latent channels, H W latent height and width; pixels (B, 3, 8 H, 8 W) are in [-1, 1]. Latents are scaled as the
U-Net expects them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from ti_trainer.hosts.diffusers.library import AutoencoderKL
from ti_trainer.model import attention_of
from ti_trainer.offload.manager import MemoryManager
from ti_trainer.offload.patching import moved_to, patched
from ti_trainer.offload.plan import DECODING, ENCODING, ran_out

log = logging.getLogger(__name__)
TILES = (64, 32)  # latent pixels on a side, tried in this order where there is no room for whole images


def dtype_on(device: torch.device, unet_dtype: torch.dtype, vae: AutoencoderKL, *, is_sdxl: bool) -> torch.dtype:
    """fp16 on CUDA, unless the U-Net computes in fp32. bf16 would be as small, but 8 times less exact.

    SDXL's VAE overflows in fp16, unless its configuration says otherwise; other families' pipelines in diffusers do not read
    that setting.
    """
    in_half = device.type == "cuda" and unet_dtype != torch.float32 and not (is_sdxl and vae.config.force_upcast)
    return torch.float16 if in_half else torch.float32


class Vae:
    """The VAE of a MemoryManager's networks. It computes in float32 from the first result on that is not finite."""

    def __init__(self, network: AutoencoderKL, memory: MemoryManager) -> None:
        """Nothing is moved yet."""
        self.network, self._memory, self._device = network, memory, memory.networks.device
        self._said = False

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of latents, each (B, C, H, W) float32."""
        with self._on_device():
            found = self._computed(lambda some: self.network.encode(some).latent_dist.parameters, pixels, ENCODING, 8)
        mean, log_variance = found.float().chunk(2, 1)
        scale = self.network.config.scaling_factor
        return mean * scale, torch.exp(0.5 * log_variance.clamp(-30, 20)) * scale  # limits as in the library

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels, not clamped; for latents that require a gradient as by `decoding`."""
        if latents.requires_grad:
            with self.decoding() as decode:
                return decode(latents)
        with self._on_device():
            return self._computed(self._decoded, latents, DECODING, 1)

    @contextmanager
    def decoding(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """Gives a function from latents to pixels with gradient, in float32; checkpointed if the U-Net is."""
        self.network.to(torch.float32)
        with self._on_device():
            try:
                if self._memory.plan.checkpointing:
                    self.network.enable_gradient_checkpointing()
                yield lambda latents: self._decoded(latents.float())
            finally:
                self.network.disable_gradient_checkpointing()

    def attention(self, pixels: Tensor) -> Tensor:
        """(H W, H W) float32, of the encoder's middle block."""
        with self._on_device():
            (block,) = self.network.encoder.mid_block.attentions
            pixels = pixels.to(self._device, self.network.dtype)
            return attention_of(block, ("group_norm", "to_q", "to_k"), lambda: self.network.encoder(pixels))

    def _decoded(self, latents: Tensor) -> Tensor:
        pixels: Tensor = self.network.decode(latents / self.network.config.scaling_factor, return_dict=False)[0]
        return pixels

    def _on_device(self) -> AbstractContextManager[None]:
        """Within it the VAE is on the device. It stays there unless the memory plan offloads it."""
        if self._memory.plan.offload_vae:
            return moved_to(self._device, self.network)
        self.network.to(self._device)
        return nullcontext()

    def _computed(self, compute: Callable[[Tensor], Tensor], given: Tensor, bytes_each: int, scale: int) -> Tensor:
        """The result in the VAE's dtype, or in float32 if it is not finite; sizes as for `_in_parts`."""
        dtype = self.network.dtype
        found = self._in_parts(compute, given.to(self._device, dtype), bytes_each, scale)
        if dtype == torch.float32 or bool(found.isfinite().all()):
            return found
        log.info("The VAE overflows in half precision and computes in float32 from here on.")
        self.network.to(torch.float32)
        return self._in_parts(compute, given.to(self._device, torch.float32), bytes_each, scale)

    def _in_parts(self, compute: Callable[[Tensor], Tensor], given: Tensor, bytes_each: int, scale: int) -> Tensor:
        """All images at once; where a GPU has no room for that, one at a time, then in overlapping tiles.

        `bytes_each` is what a latent pixel takes in float32, and `scale` how many of the input's pixels it is on a side.
        """
        image = given[0, 0].numel() // scale**2  # latent pixels
        for count, side in ((len(given), None), (1, None), *((1, each) for each in TILES)):
            size = count * (image if side is None else min(image, side**2))
            is_last = side == TILES[-1]
            if not is_last and not self._memory.has_room(size * bytes_each * self.network.dtype.itemsize // 4):
                continue
            if side is not None and bytes_each == ENCODING and not self._said:
                log.warning(
                    "The GPU has no room to encode whole images of this size: they are encoded in overlapping tiles."
                )
                self._said = True
            try:
                with self._tiled(side):
                    return torch.cat([compute(some) for some in given.split(count)])
            except RuntimeError as error:
                if is_last or not ran_out(error):
                    raise
        raise AssertionError(TILES)

    def _tiled(self, side: int | None) -> AbstractContextManager[None]:
        """Within it the VAE computes in tiles of this many latent pixels on a side; None: not in tiles."""
        names = ("use_tiling", "tile_sample_min_size", "tile_latent_min_size")
        values = () if side is None else (True, side * 8, side)
        return patched((self.network, name, value) for name, value in zip(names, values, strict=False))
