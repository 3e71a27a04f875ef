"""The VAE of the checkpoint that the WebUI has loaded: on the device while it computes, in float32 where that is needed.

B batch, C latent channels, H W latent height and width; pixels (B, 3, 8 H, 8 W) are in [-1, 1]. Latents are the VAE's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ti_trainer.errors import ModelError
from ti_trainer.hosts.webui.patches import placed, plain, typed
from ti_trainer.model import attention_of
from ti_trainer.offload.streaming import attributes, blocks_of, recomputed

MEDVRAM_HOOK = "send_me_to_gpu"  # with --medvram, what brings a module to the GPU and sends the last one away


class Vae:
    """Half precision is not enough for some: once that has shown, it computes in float32."""

    def __init__(self, sd_model: Any, device: torch.device) -> None:
        """Nothing is moved yet."""
        self._sd_model, self._device = sd_model, device
        self._needs_float32 = self._decodes_well = False

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of latents, each (B, C, H, W) float32; ModelError if they are no numbers."""
        mean, std = self._computed(_distribution, pixels)
        return mean, std

    def attention(self, pixels: Tensor) -> Tensor:
        """(H W, H W) float32, of the encoder's block in the middle; ModelError if it has none."""
        return self._computed(_attention, pixels)[0]

    @contextmanager
    def decoding(self, *, recompute: bool) -> Iterator[Callable[[Tensor], Tensor]]:
        """Within it there is what makes pixels of latents, not clamped; it computes blocks twice if that is asked for."""
        with ExitStack() as stack:
            vae = stack.enter_context(self._ready())
            if self._needs_float32:
                stack.enter_context(typed(vae, torch.float32))
            if recompute:
                stack.enter_context(attributes(recomputed(blocks_of(vae.decoder))))

            def decode(latents: Tensor) -> Tensor:
                pixels = vae.decode(latents.to(self._device, dtype_of(vae)))
                if not self._decodes_well and dtype_of(vae) != torch.float32 and not _finite(pixels):
                    self._needs_float32 = True
                    stack.enter_context(typed(vae, torch.float32))
                    return decode(latents)
                self._decodes_well = True  # one look is enough: each makes the CPU wait
                return pixels

            yield decode

    def _computed(self, compute: Callable[[Any, Tensor], tuple[Tensor, ...]], pixels: Tensor) -> tuple[Tensor, ...]:
        with self._ready() as vae:
            _bring(vae)
            dtype = dtype_of(vae)
            if not self._needs_float32:
                found = compute(vae, pixels.to(self._device, dtype))
                self._needs_float32 = dtype != torch.float32 and not _finite(*found)
            if self._needs_float32:
                with typed(vae, torch.float32):
                    found = compute(vae, pixels.to(self._device, torch.float32))
        if not _finite(*found):
            message = "The VAE makes no numbers of an image, in full precision either: choose another in Settings, VAE."
            raise ModelError(message)
        return found

    @contextmanager
    def _ready(self) -> Iterator[Any]:
        """On the device, where with --medvram the host brings it itself, and not tiling."""
        vae, medvram = self._sd_model.first_stage_model, getattr(self._sd_model, "lowvram", False)
        with nullcontext() if medvram else placed(vae, self._device), attributes(plain(vae)):
            yield vae


def dtype_of(module: torch.nn.Module) -> torch.dtype:
    """Its weights', by the first of them."""
    return next(module.parameters()).dtype


def _distribution(vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (B, C, H, W) float32 of the VAE's latents: SDXL's `encode` draws from them at once."""
    mean, log_variance = vae.quant_conv(vae.encoder(pixels)).float().chunk(2, 1)
    return mean, (log_variance.clamp(-30, 20) / 2).exp()  # the limits are those of the original code


def _attention(vae: Any, pixels: Tensor) -> tuple[Tensor]:
    """(H W, H W) float32."""
    return (attention_of(vae.encoder.mid.attn_1, ("norm", "q", "k"), lambda: vae.encoder(pixels)),)


def _bring(vae: Any) -> None:
    """With --medvram the host brings it to the GPU when its `encode` is called, which we go around."""
    for hook in vae._forward_pre_hooks.values():
        if getattr(hook, "__name__", "") == MEDVRAM_HOOK:
            hook(vae, ())


def _finite(*numbers: Tensor) -> bool:
    return all(bool(each.isfinite().all()) for each in numbers)
