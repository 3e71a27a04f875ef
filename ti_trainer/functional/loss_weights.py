"""How much each sample counts in the loss, by its timestep.

To add a weighting, write a function and give it a name in LOSS_WEIGHTINGS: the option `loss_weighting` takes its choices
from there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ti_trainer.functional.objective import PredictionType

if TYPE_CHECKING:
    from torch import Tensor


class LossWeighting(Protocol):
    """Weights (B,) of samples with these alphas_cumprod (B,)."""

    def __call__(self, alphas_cumprod: Tensor, prediction_type: PredictionType, gamma: float) -> Tensor: ...  # noqa: D102


def min_snr(alphas_cumprod: Tensor, prediction_type: PredictionType, gamma: float) -> Tensor:
    """Min-SNR-gamma (arXiv:2303.09556, section 3.4): weights (B,) for samples with these alphas_cumprod (B,).

    min(SNR, gamma) / SNR for epsilon, min(SNR, gamma) / (SNR + 1) for v. At zero SNR these are 1 and 0.
    """
    snr = alphas_cumprod / (1 - alphas_cumprod)
    if prediction_type == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    return (gamma / snr).clamp(max=1.0)  # not min(SNR, gamma) / SNR, which is 0 / 0 at zero SNR


LOSS_WEIGHTINGS: dict[str, LossWeighting | None] = {"none": None, "min-snr": min_snr}
