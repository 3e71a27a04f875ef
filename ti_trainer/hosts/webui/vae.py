"""The VAE of the WebUI's loaded checkpoint: on the device while it computes, and in float32 where half precision fails.

B batch, C latent channels, H W latent height and width; pixels (B, 3, 8 H, 8 W) are in [-1, 1]. Latents are not scaled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ti_trainer.errors import ModelError
from ti_trainer.hosts.webui.patches import cast_to, without_host_patches
from ti_trainer.model import attention_of
from ti_trainer.offload.checkpointing import blocks_of, checkpointed
from ti_trainer.offload.patching import moved_to, patched

MEDVRAM_HOOK = "send_me_to_gpu"  # the name of --medvram's hook, which moves a module to the GPU and the last one away


class Vae:
    """Computes in float32 from the first result on that is not finite in half precision, which some VAEs need."""

    def __init__(self, sd_model: Any, device: torch.device, prepare: Callable[[], None] = lambda: None) -> None:
        """Move nothing yet. `prepare` is called each time before the VAE is used."""
        self._sd_model, self._device, self._prepare = sd_model, device, prepare
        self._needs_float32 = self._decodes_well = False

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of latents, each (B, C, H, W) float32; ModelError if they are not finite."""
        mean, std = self._computed(_distribution, pixels)
        return mean, std

    def attention(self, pixels: Tensor) -> Tensor:
        """(H W, H W) float32, of the encoder's middle block; ModelError if it has none."""
        return self._computed(_attention, pixels)[0]

    @contextmanager
    def decoding(self, *, checkpointing: bool) -> Iterator[Callable[[Tensor], Tensor]]:
        """Gives a function from latents to pixels, not clamped, which may use gradient checkpointing."""
        with ExitStack() as stack:
            vae = stack.enter_context(self._ready())
            if self._needs_float32:
                stack.enter_context(cast_to(torch.float32, vae))
            if checkpointing:
                stack.enter_context(patched(checkpointed(blocks_of(vae.decoder))))

            def decode(latents: Tensor) -> Tensor:
                pixels = vae.decode(latents.to(self._device, dtype_of(vae)))
                if not self._decodes_well and dtype_of(vae) != torch.float32 and not _finite(pixels):
                    self._needs_float32 = True
                    stack.enter_context(cast_to(torch.float32, vae))
                    return decode(latents)
                self._decodes_well = True  # checked once: each check makes the CPU wait
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
                with cast_to(torch.float32, vae):
                    found = compute(vae, pixels.to(self._device, torch.float32))
        if not _finite(*found):
            message = "The VAE gives no finite values for an image, even in float32: choose another in Settings, VAE."
            raise ModelError(message)
        return found

    @contextmanager
    def _ready(self) -> Iterator[Any]:
        """The VAE as published and on the device; with --medvram the WebUI's hook moves it there."""
        vae, medvram = self._sd_model.first_stage_model, getattr(self._sd_model, "lowvram", False)
        self._prepare()
        with nullcontext() if medvram else moved_to(self._device, vae), patched(without_host_patches(vae)):
            yield vae


def dtype_of(module: torch.nn.Module) -> torch.dtype:
    """The dtype of its first weight."""
    return next(module.parameters()).dtype


def _distribution(vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (B, C, H, W) float32 of the VAE's latents; SDXL's own `encode` gives a sample only."""
    mean, log_variance = vae.quant_conv(vae.encoder(pixels)).float().chunk(2, 1)
    return mean, (log_variance.clamp(-30, 20) / 2).exp()  # limits as in the original code


def _attention(vae: Any, pixels: Tensor) -> tuple[Tensor]:
    """(H W, H W) float32."""
    return (attention_of(vae.encoder.mid.attn_1, ("norm", "q", "k"), lambda: vae.encoder(pixels)),)


def _bring(vae: Any) -> None:
    """Call --medvram's hook, which runs before the VAE's `encode`: that is not called here."""
    for hook in vae._forward_pre_hooks.values():
        if getattr(hook, "__name__", "") == MEDVRAM_HOOK:
            hook(vae, ())


def _finite(*tensors: Tensor) -> bool:
    return all(bool(each.isfinite().all()) for each in tensors)
