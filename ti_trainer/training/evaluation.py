"""The validation loss: the denoising loss of images with the same noise and timesteps at each measurement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ti_trainer.data.dataset import Batch, Item, image_conditioning, sample_rng
from ti_trainer.functional.guidance import GuidanceScale
from ti_trainer.functional.objective import add_noise
from ti_trainer.model import DiffusionModel, Vectors
from ti_trainer.training.step import TargetFunction, training_loss
from ti_trainer.training.teacher import Teacher

NUM_TIMESTEPS = 10
NOISE_SEED = 20_240_229  # any number will do, as long as it never changes


def fixed_batches(
    items: Sequence[Item],
    prompts: Sequence[str],
    num_timesteps: int,
    negative_prompts: Sequence[str] = (),
    at_once: int = NUM_TIMESTEPS,
    *,
    spread: bool = False,
) -> Iterator[Batch]:
    """Yield each image at NUM_TIMESTEPS evenly spaced timesteps with fixed noise, in batches of at most `at_once`.

    With `spread`, the timesteps are dealt out to the images instead: NUM_TIMESTEPS samples in all.
    """
    negative_prompts = negative_prompts or [""] * len(prompts)
    timesteps = torch.from_numpy(((np.arange(NUM_TIMESTEPS) + 0.5) * num_timesteps / NUM_TIMESTEPS).astype(np.int64))
    for number, (item, prompt, negative) in enumerate(zip(items, prompts, negative_prompts, strict=True)):
        each = item.latents  # (C, H, W)
        noise = sample_rng(NOISE_SEED, number).standard_normal((NUM_TIMESTEPS, *each.shape), np.float32)
        numbers = range(number, NUM_TIMESTEPS, len(items)) if spread else range(NUM_TIMESTEPS)
        for start in range(0, len(numbers), at_once):
            part = list(numbers[start : start + at_once])
            count = len(part)
            yield Batch(
                each.repeat(count, 1, 1, 1),
                torch.from_numpy(noise[part]),
                timesteps[part],
                (prompt,) * count,
                None if item.weight is None else item.weight.repeat(count, 1, 1, 1),
                image_conditioning([item] * count),
                (negative,) * count,
            )


def described(text: str, caption: str) -> str:
    """A prompt followed by the caption, without which the background would make up most of the loss."""
    return ", ".join(filter(None, (text, caption)))


@torch.no_grad()
def validation_loss(
    model: DiffusionModel,
    items: Sequence[Item],
    prompts: Sequence[str],
    embeddings: Mapping[str, Vectors],
    scale: GuidanceScale | None = None,
    negative_prompts: Sequence[str] = (),
    at_once: int = NUM_TIMESTEPS,
    teacher: TargetFunction | None = None,
    *,
    spread: bool = False,
) -> float:
    """Mean denoising loss of images, weighted by their masks, with one prompt for each.

    With a scale, predictions are guided away from one negative prompt for each. At most `at_once` samples are computed
    together, to limit memory; `spread` as for `fixed_batches`. A teacher gives the targets, if there is one. Weights by
    timestep, such as min-SNR's, do not apply, so that all runs can be compared.
    """
    batches = fixed_batches(items, prompts, len(model.alphas_cumprod), negative_prompts, at_once, spread=spread)
    losses = [training_loss(model, batch.on(model.device), embeddings, scale, teacher=teacher) for batch in batches]
    return torch.cat(losses).mean().item()


@torch.no_grad()
def gap_closed(
    model: DiffusionModel,
    items: Sequence[Item],
    prompts: Sequence[str],
    embeddings: Mapping[str, Vectors],
    teacher: Teacher,
    at_once: int = NUM_TIMESTEPS,
) -> float:
    """How much of the way from no text to the teacher an embedding goes: 1 - MSE(embedding, teacher) / MSE(none, teacher).

    Measured on the noise of the validation loss, which training does not use, with one prompt for each image.
    """
    reached = empty = 0.0
    for each in fixed_batches(items, prompts, len(model.alphas_cumprod), at_once=at_once):
        batch = each.on(model.device)
        without = replace(batch, prompts=tuple(map(teacher.without_name, batch.prompts)))
        noisy_latents = add_noise(batch.latents, batch.noise, model.alphas_cumprod[batch.timesteps])  # (B, C, H, W)
        wanted = teacher(model, noisy_latents, batch)  # (B, C, H, W)

        def target(*_: object, wanted: Tensor = wanted) -> Tensor:
            return wanted

        reached += training_loss(model, batch, embeddings, teacher=target).sum().item()
        empty += training_loss(model, without, {}, teacher=target).sum().item()
    return 1 - reached / empty if empty else 0.0
