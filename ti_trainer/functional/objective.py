"""Noise, targets and the denoising loss of diffusion training.

B batch, C latent channels, H W latent height and width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

PredictionType = Literal["epsilon", "v_prediction"]


def add_noise(latents: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """The forward process q(x_t | x_0) of DDPM (arXiv:2006.11239, eq. 4); alphas_cumprod (B,) at each sample's timestep."""
    alpha = alphas_cumprod[:, None, None, None]
    return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise  # (B, C, H, W)


def target(latents: Tensor, noise: Tensor, alphas_cumprod: Tensor, prediction_type: PredictionType) -> Tensor:
    """What the U-Net should predict (B, C, H, W): the noise, or v (arXiv:2202.00512, appendix D)."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        alpha = alphas_cumprod[:, None, None, None]
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
    message = f"unknown prediction type {prediction_type!r}: expected epsilon or v_prediction"
    raise ValueError(message)


def clean_latents(
    noisy_latents: Tensor, prediction: Tensor, alphas_cumprod: Tensor, prediction_type: PredictionType
) -> Tensor:
    """The estimate of x_0 (B, C, H, W) in fp32 that follows from a prediction."""
    alpha = alphas_cumprod[:, None, None, None]
    signal, sigma = alpha.sqrt(), (1 - alpha).sqrt()
    if prediction_type == "epsilon":
        return (noisy_latents - sigma * prediction.float()) / signal
    return signal * noisy_latents - sigma * prediction.float()


def zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """The noise schedule, rescaled so that the last timestep is pure noise (arXiv:2305.08891, algorithm 1)."""
    signal = alphas_cumprod.double().sqrt()
    signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    return signal.square().to(alphas_cumprod)


def denoising_loss(prediction: Tensor, wanted: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared error of each sample (B,), with a weight for each position (B, 1, H, W)."""
    from torch.nn.functional import mse_loss  # here, so that options can be read without torch

    error = mse_loss(prediction.float(), wanted, reduction="none")
    if weight is not None:
        error = error * weight
    return error.mean(dim=(1, 2, 3))
