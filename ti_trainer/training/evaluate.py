"""The deterministic loss: how well a prompt explains pictures, with the same noise and timesteps every time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from ti_trainer.data.dataset import Batch, Item, picture_conditioning, sample_rng
from ti_trainer.model import DiffusionModel, Vectors
from ti_trainer.training.guidance import GuidanceScale
from ti_trainer.training.step import training_loss

NUM_TIMESTEPS = 10
NOISE_SEED = 20_240_229  # any number will do, as long as it stays


def fixed_batches(
    items: Sequence[Item], prompts: Sequence[str], num_timesteps: int, negative_prompts: Sequence[str] = ()
) -> Iterator[Batch]:
    """For each picture one batch of NUM_TIMESTEPS timesteps spread evenly, each with its own noise."""
    negative_prompts = negative_prompts or [""] * len(prompts)
    timesteps = torch.from_numpy(((np.arange(NUM_TIMESTEPS) + 0.5) * num_timesteps / NUM_TIMESTEPS).astype(np.int64))
    for number, (item, prompt, negative) in enumerate(zip(items, prompts, negative_prompts, strict=True)):
        each = item.latents  # (C, H, W)
        noise = sample_rng(NOISE_SEED, number).standard_normal((NUM_TIMESTEPS, *each.shape), np.float32)
        repeated = each.expand(NUM_TIMESTEPS, *each.shape)
        same, unwanted = (prompt,) * NUM_TIMESTEPS, (negative,) * NUM_TIMESTEPS
        pictures = picture_conditioning([item] * NUM_TIMESTEPS)
        yield Batch(
            repeated, torch.from_numpy(noise).to(each.device), timesteps.to(each.device), same, None, pictures, unwanted
        )


def described(text: str, caption: str) -> str:
    """A prompt that names the word and all else that the caption tells: otherwise the background is most of the loss."""
    return ", ".join(filter(None, (text, caption)))


@torch.no_grad()
def deterministic_loss(
    model: DiffusionModel,
    items: Sequence[Item],
    prompts: Sequence[str],
    words: Mapping[str, Vectors],
    scale: GuidanceScale | None = None,
    negative_prompts: Sequence[str] = (),
) -> float:
    """Mean denoising loss of pictures under a prompt for each, with a scale guided away from a negative one for each."""
    batches = fixed_batches(items, prompts, len(model.alphas_cumprod), negative_prompts)
    return torch.stack([training_loss(model, batch, words, scale).mean() for batch in batches]).mean().item()
