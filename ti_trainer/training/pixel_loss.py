"""Losses of pixels: the clean image that the network has in mind, decoded, against the training image or a classifier.

B batch, C latent channels, H W latent height and width; pixels (B, 3, 8 H, 8 W) are in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ti_trainer.data.dataset import Batch
from ti_trainer.model import DiffusionModel

LATENT_PIXELS_AT_ONCE = 64 * 64  # decoded together: an image of 512 px fills a GPU, and needs more memory than a step
GRADIENT_SCALE = 2.0**10  # a VAE may be in half precision, in which the gradient of one pixel of a mean comes to nothing


@dataclass(frozen=True)
class PixelLoss:
    """What images lose: `reconstruction` times their mean absolute error, DreamArtist's, and what `others` say.

    Each other is a weight and what makes (B,) of pixels. The error counts as much as the denoising one: by the masks; what
    others say, as much as the image's dataset does.
    """

    reconstruction: float = 0.0
    others: tuple[tuple[float, Callable[[Tensor], Tensor]], ...] = ()

    def __call__(self, model: DiffusionModel, estimate: Tensor, batch: Batch) -> Tensor:
        """(B,) for estimates of clean latents (B, C, H, W), differentiable in them."""
        return _Decoded.apply(estimate, model.decoding, lambda pixels, part: self._of(pixels, batch, part))

    def _of(self, pixels: Tensor, batch: Batch, part: slice) -> Tensor:
        loss = pixels.new_zeros(len(pixels))
        if self.reconstruction:
            wanted = batch.pixels[part].to(pixels) / 127.5 - 1
            error = (pixels - wanted).abs()
            if batch.weight is not None:
                error = error * interpolate(batch.weight[part], error.shape[-2:])
            loss = self.reconstruction * error.mean(dim=(1, 2, 3))
        for weight, each in self.others:
            judged = weight * each(pixels)
            loss = loss + (judged if batch.shares is None else judged * batch.shares[part])
        return loss


def latent_pixels_at_once(batch_size: int, places: int) -> int:
    """Latent places that are decoded together, of images with this many each."""
    return min(batch_size, max(1, LATENT_PIXELS_AT_ONCE // places)) * places


class _Decoded(torch.autograd.Function):
    """(B,) of images that are decoded a few at a time, there and back at once.

    So the decoder holds those few whatever the batch, nothing is computed twice, and the VAE may leave the GPU meanwhile.
    """

    @staticmethod
    def forward(
        ctx: Any,
        latents: Tensor,
        decoding: Callable[[], AbstractContextManager[Callable[[Tensor], Tensor]]],
        loss_of: Callable[[Tensor, slice], Tensor],
    ) -> Tensor:
        """`loss_of` gets pixels, float32, and which of the batch they are."""
        count = max(1, LATENT_PIXELS_AT_ONCE // latents[0, 0].numel())
        losses, gradients = [], []
        with decoding() as decode, torch.enable_grad():
            for start in range(0, len(latents), count):
                part = slice(start, start + count)
                some = latents[part].detach().requires_grad_()
                loss = loss_of(decode(some).float(), part)
                (gradient,) = torch.autograd.grad(GRADIENT_SCALE * loss.sum(), some)
                losses.append(loss.detach())
                gradients.append(gradient / GRADIENT_SCALE)
        ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """By the chain rule: what an image loses depends on its own latents alone."""
        (gradients,) = ctx.saved_tensors
        return grad[:, None, None, None] * gradients, None, None
