"""The validation loss: how well a prompt explains images, with the same noise and timesteps every time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from ti_trainer.data.dataset import Batch, Item, image_conditioning, sample_rng
from ti_trainer.functional.guidance import GuidanceScale
from ti_trainer.model import DiffusionModel, Vectors
from ti_trainer.training.step import training_loss

NUM_TIMESTEPS = 10
NOISE_SEED = 20_240_229  # any number will do, as long as it stays


def fixed_batches(
    items: Sequence[Item],
    prompts: Sequence[str],
    num_timesteps: int,
    negative_prompts: Sequence[str] = (),
    at_once: int = NUM_TIMESTEPS,
) -> Iterator[Batch]:
    """For each image NUM_TIMESTEPS timesteps spread evenly, each with its own noise, in batches of up to `at_once`."""
    negative_prompts = negative_prompts or [""] * len(prompts)
    timesteps = torch.from_numpy(((np.arange(NUM_TIMESTEPS) + 0.5) * num_timesteps / NUM_TIMESTEPS).astype(np.int64))
    for number, (item, prompt, negative) in enumerate(zip(items, prompts, negative_prompts, strict=True)):
        each = item.latents  # (C, H, W)
        noise = sample_rng(NOISE_SEED, number).standard_normal((NUM_TIMESTEPS, *each.shape), np.float32)
        for start in range(0, NUM_TIMESTEPS, at_once):
            part = slice(start, start + at_once)
            here = timesteps[part].to(each.device)
            count = len(here)
            yield Batch(
                each.expand(count, *each.shape),
                torch.from_numpy(noise[part]).to(each.device),
                here,
                (prompt,) * count,
                None if item.weight is None else item.weight.expand(count, *item.weight.shape),
                image_conditioning([item] * count),
                (negative,) * count,
            )


def described(text: str, caption: str) -> str:
    """A prompt that names the word and all else that the caption tells: otherwise the background is most of the loss."""
    return ", ".join(filter(None, (text, caption)))


@torch.no_grad()
def validation_loss(
    model: DiffusionModel,
    items: Sequence[Item],
    prompts: Sequence[str],
    words: Mapping[str, Vectors],
    scale: GuidanceScale | None = None,
    negative_prompts: Sequence[str] = (),
    at_once: int = NUM_TIMESTEPS,
) -> float:
    """Mean denoising loss of images, weighted by their masks, under a prompt for each.

    With a scale, guided away from a negative prompt for each; `at_once` is the most samples that memory has to hold.
    """
    batches = fixed_batches(items, prompts, len(model.alphas_cumprod), negative_prompts, at_once)
    return torch.cat([training_loss(model, batch, words, scale) for batch in batches]).mean().item()
