"""Pixel losses: the decoded estimate of the clean image, compared with the training image or rated by a classifier.

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
from ti_trainer.functional.transfer import sent
from ti_trainer.model import DiffusionModel

LATENT_PIXELS_AT_ONCE = 64 * 64  # decoded together: one image of 512 px keeps a GPU busy, and takes more memory than a step
GRADIENT_SCALE = 2.0**10  # in half precision, a pixel's share of the gradient of a mean would round to 0


@dataclass(frozen=True)
class PixelLoss:
    """`reconstruction` times the mean absolute error, as in DreamArtist, plus the sum of `others`.

    Each of `others` is a weight and a loss (B,) of pixels. The error is weighted by the masks, as the denoising loss is;
    `others` by the loss weight of the image's folder.
    """

    reconstruction: float = 0.0
    others: tuple[tuple[float, Callable[[Tensor], Tensor]], ...] = ()

    def __call__(self, model: DiffusionModel, estimate: Tensor, batch: Batch) -> Tensor:
        """The loss (B,) of estimated clean latents (B, C, H, W), differentiable in them."""
        losses: Tensor = _Decoded.apply(  # type: ignore[no-untyped-call]  # torch has no types for it
            estimate, model.decoding, lambda pixels, part: self._of(pixels, batch, part)
        )
        return losses

    def _of(self, pixels: Tensor, batch: Batch, part: slice) -> Tensor:
        loss = pixels.new_zeros(len(pixels))
        if self.reconstruction:
            if batch.pixels is None:
                message = "the dataset was loaded without pixels"
                raise ValueError(message)
            wanted = sent(batch.pixels[part], pixels.device).to(pixels) / 127.5 - 1
            error = (pixels - wanted).abs()
            if batch.weight is not None:
                error = error * interpolate(batch.weight[part], error.shape[-2:])
            loss = self.reconstruction * error.mean(dim=(1, 2, 3))
        for weight, each in self.others:
            added = weight * each(pixels)
            loss = loss + (added if batch.shares is None else added * batch.shares[part])
        return loss


def latent_pixels_at_once(batch_size: int, latent_pixels: int) -> int:
    """Number of latent pixels that are decoded together, for images with `latent_pixels` each."""
    return min(batch_size, max(1, LATENT_PIXELS_AT_ONCE // latent_pixels)) * latent_pixels


class _Decoded(torch.autograd.Function):
    """Losses (B,) of images that are decoded a few at a time, with the gradient computed right after each forward pass.

    The decoder's activations exist for those few images only, nothing is computed twice, and the VAE can leave the GPU.
    """

    @staticmethod
    def forward(
        ctx: Any,
        latents: Tensor,
        decoding: Callable[[], AbstractContextManager[Callable[[Tensor], Tensor]]],
        loss_of: Callable[[Tensor, slice], Tensor],
    ) -> Tensor:
        """`loss_of` gets pixels in fp32 and the part of the batch that they are."""
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
        """The chain rule: an image's loss depends on its own latents only."""
        (gradients,) = ctx.saved_tensors
        return grad[:, None, None, None] * gradients, None, None
