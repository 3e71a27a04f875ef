"""Min-SNR weights are those of diffusers' training scripts, and safe at zero SNR."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from fakes import TinyModel

from ti_trainer.data.dataset import Dataset
from ti_trainer.functional.loss_weights import LOSS_WEIGHTINGS, min_snr
from ti_trainer.functional.objective import PredictionType, zero_terminal_snr
from ti_trainer.model import ModelSpec
from ti_trainer.training.step import training_loss
from ti_trainer.training.trainer import StepDone, Trainer

SCHEDULER = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
TIMESTEPS = torch.arange(1000)


@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
def test_weights_are_those_of_diffusers_scripts(gamma: float) -> None:
    snr = compute_snr(SCHEDULER, TIMESTEPS)
    smaller = torch.stack([snr, gamma * torch.ones_like(snr)], dim=1).min(dim=1)[0]
    alphas_cumprod = SCHEDULER.alphas_cumprod[TIMESTEPS]
    torch.testing.assert_close(min_snr(alphas_cumprod, "epsilon", gamma), smaller / snr, rtol=1e-4, atol=0)
    torch.testing.assert_close(min_snr(alphas_cumprod, "v_prediction", gamma), smaller / (snr + 1), rtol=1e-4, atol=0)


def test_epsilon_and_v_weigh_the_error_of_the_clean_image_alike() -> None:
    """Equation 5 of the paper: all are min(SNR, gamma) times the error of x_0, for any prediction."""
    alphas_cumprod = SCHEDULER.alphas_cumprod[TIMESTEPS].double()
    snr = alphas_cumprod / (1 - alphas_cumprod)
    of_x0 = {"epsilon": snr, "v_prediction": snr + 1}  # an error of epsilon or v, squared, for an error of 1 in x_0
    for kind, factor in of_x0.items():
        torch.testing.assert_close(min_snr(alphas_cumprod, kind, 5.0) * factor, snr.clamp(max=5.0))


@pytest.mark.parametrize(("prediction_type", "last"), [("epsilon", 1.0), ("v_prediction", 0.0)])
def test_weights_at_zero_snr_are_finite(prediction_type: PredictionType, last: float) -> None:
    alphas_cumprod = zero_terminal_snr(SCHEDULER.alphas_cumprod)
    weights = min_snr(alphas_cumprod, prediction_type, 5.0)
    assert alphas_cumprod[-1] == 0
    assert weights.isfinite().all()
    assert weights[-1] == last
    assert min_snr(torch.ones(1), prediction_type, 5.0).item() == 0  # no noise at all


class Velocity(TinyModel):
    spec = ModelSpec("tiny", "v_prediction")


@pytest.mark.parametrize("model", [TinyModel(), Velocity()], ids=["epsilon", "v"])
def test_each_sample_counts_by_its_timestep(model: TinyModel, dataset: Callable[..., Dataset]) -> None:
    batch = replace(next(dataset().batches(2)), timesteps=torch.tensor([5, 90]))
    embeddings = {"x-word": {"clip_l": torch.ones(1, 8)}}
    plain = training_loss(model, batch, embeddings)
    weighted = training_loss(model, batch, embeddings, None, None, partial(min_snr, gamma=5.0))
    expected = min_snr(model.alphas_cumprod[batch.timesteps], model.spec.prediction_type, 5.0)
    torch.testing.assert_close(weighted, plain * expected)
    assert len(set(expected.tolist())) == 2


def test_a_run_with_min_snr_differs_and_a_large_gamma_is_none(trainer: Callable[..., Trainer]) -> None:
    def losses(**options: object) -> list[float]:
        return [each.loss.item() for each in trainer(max_steps=4, **options).run() if isinstance(each, StepDone)]

    assert set(LOSS_WEIGHTINGS) == {"none", "min-snr"}
    plain = losses()
    assert losses(loss_weighting="min-snr", snr_gamma=1000) == pytest.approx(plain)  # SNR is below 1000 everywhere
    assert losses(loss_weighting="min-snr", snr_gamma=0.1) != pytest.approx(plain)
