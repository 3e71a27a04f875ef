"""The mathematics of the objective agrees with diffusers' numbers."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler

from ti_trainer.functional.objective import add_noise, denoising_loss, target

TIMESTEPS = torch.tensor([0, 1, 250, 500, 998, 999])


@pytest.fixture
def reference() -> DDPMScheduler:
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


@pytest.fixture
def sample() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, len(TIMESTEPS), 4, 3, 5, generator=generator)
    return latents, noise


def test_noise_is_added_as_in_diffusers(reference: DDPMScheduler, sample: tuple[torch.Tensor, torch.Tensor]) -> None:
    latents, noise = sample
    ours = add_noise(latents, noise, reference.alphas_cumprod[TIMESTEPS])
    torch.testing.assert_close(ours, reference.add_noise(latents, noise, TIMESTEPS), atol=1e-6, rtol=0)


def test_v_is_that_of_diffusers(reference: DDPMScheduler, sample: tuple[torch.Tensor, torch.Tensor]) -> None:
    latents, noise = sample
    ours = target(latents, noise, reference.alphas_cumprod[TIMESTEPS], "v_prediction")
    torch.testing.assert_close(ours, reference.get_velocity(latents, noise, TIMESTEPS), atol=1e-6, rtol=0)


def test_epsilon_is_the_noise(reference: DDPMScheduler, sample: tuple[torch.Tensor, torch.Tensor]) -> None:
    latents, noise = sample
    assert torch.equal(target(latents, noise, reference.alphas_cumprod[TIMESTEPS], "epsilon"), noise)


def test_another_prediction_type_is_refused(sample: tuple[torch.Tensor, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="expected epsilon or v_prediction"):
        target(*sample, torch.ones(len(TIMESTEPS)), "sample")  # type: ignore[arg-type]


def test_the_loss_is_the_mean_squared_error_of_each_sample(sample: tuple[torch.Tensor, torch.Tensor]) -> None:
    prediction, wanted = sample
    expected = torch.tensor([float(torch.nn.functional.mse_loss(*pair)) for pair in zip(prediction, wanted, strict=True)])
    torch.testing.assert_close(denoising_loss(prediction, wanted), expected)


def test_the_loss_is_computed_in_fp32(sample: tuple[torch.Tensor, torch.Tensor]) -> None:
    assert denoising_loss(sample[0].bfloat16(), sample[1]).dtype == torch.float32


def test_a_place_of_weight_zero_does_not_count_and_one_of_two_counts_twice() -> None:
    prediction, wanted = torch.tensor([[[[1.0, 10.0], [3.0, 0.0]]]]), torch.zeros(1, 1, 2, 2)
    weight = torch.tensor([[[[2.0, 0.0], [1.0, 1.0]]]])
    assert denoising_loss(prediction, wanted, weight).item() == (2 * 1 + 0 * 100 + 1 * 9 + 0) / 4
