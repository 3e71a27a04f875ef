"""One update: loss of a batch, then unscale, clip, step. Knows no data set and no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ti_trainer.data.dataset import Batch
from ti_trainer.model import Conditioning, DiffusionModel, Vectors
from ti_trainer.training.guidance import GuidanceScale, guided
from ti_trainer.training.objective import add_noise, clean_latents, denoising_loss, target
from ti_trainer.training.pixels import PixelLoss


def training_loss(
    model: DiffusionModel,
    batch: Batch,
    words: Mapping[str, Vectors],
    scale: GuidanceScale | None = None,
    pixel_loss: PixelLoss | None = None,
) -> Tensor:
    """The denoising loss of each sample, (B,), differentiable in the words' vectors.

    With a scale, of what a sampler would follow that is guided away from the batch's negative prompts. With a loss of
    pixels, that of the clean pictures which this estimates is added.
    """
    alphas_cumprod = model.alphas_cumprod[batch.timesteps]  # (B,)
    noisy_latents = add_noise(batch.latents, batch.noise, alphas_cumprod)
    wanted = target(batch.latents, batch.noise, alphas_cumprod, model.kind.prediction_type)
    if scale is None:
        cond = encode_distinct(model, batch.prompts, words)
        prediction = model.predict(noisy_latents, batch.timesteps, cond, batch.pictures)
    else:
        cond = encode_distinct(model, [*batch.negative_prompts, *batch.prompts], words)
        twice = noisy_latents.repeat(2, 1, 1, 1), batch.timesteps.repeat(2)
        negative, positive = model.predict(*twice, cond, batch.pictures.repeat(2)).float().chunk(2)
        prediction = guided(negative, positive, scale.at(batch.timesteps, len(model.alphas_cumprod)))
    loss = denoising_loss(prediction, wanted, batch.weight)
    if pixel_loss is None:
        return loss
    estimate = clean_latents(noisy_latents, prediction, alphas_cumprod, model.kind.prediction_type)
    return loss + pixel_loss(model, estimate, batch)


def encode_distinct(model: DiffusionModel, prompts: Sequence[str], words: Mapping[str, Vectors]) -> Conditioning:
    """What `encode_prompts` gives, each prompt encoded once however often it is there."""
    distinct = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
    cond = model.encode_prompts(list(distinct), words)
    if len(distinct) == len(prompts):
        return cond
    rows = [distinct[prompt] for prompt in prompts]  # by slices: for an index the CPU would wait for the GPU
    hidden, pooled = (
        None if each is None else torch.stack([each[row] for row in rows]) for each in (cond.hidden, cond.pooled)
    )
    return Conditioning(hidden, pooled)


def optimizer_step(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    scaler: Any,
    clip_grad: str = "disabled",
    clip_grad_limit: float = 0.0,
    *,
    ask: bool = True,
) -> bool:
    """Update the parameters from their gradients, which are unscaled before they are clipped and cleared afterwards.

    `scaler` is torch's GradScaler or None; when all its optimizers are done it wants to be updated. False if the update was
    left out since gradients overflowed; unless we `ask`, which makes the CPU wait for the GPU, that remains unknown.
    """
    updated = True
    if scaler is not None:
        scaler.unscale_(optimizer)
        if ask:
            updated = bool(torch.stack([each.grad.isfinite().all() for each in parameters]).all())
    if clip_grad == "value":
        torch.nn.utils.clip_grad_value_(parameters, clip_grad_limit)
    elif clip_grad == "norm":
        torch.nn.utils.clip_grad_norm_(parameters, clip_grad_limit)
    if scaler is None:
        optimizer.step()
    elif updated:
        scaler.step(optimizer)  # which leaves it out by itself where gradients overflowed
    for each in parameters:
        each.grad = None
    return updated


def adamw(words: list[list[Tensor]], rate: float) -> torch.optim.AdamW:
    """A group of parameters for each word. Those are made anew, since a constructor that fails has written into them."""
    try:
        return torch.optim.AdamW([{"params": each} for each in words], rate, weight_decay=0.0, fused=True)
    except RuntimeError:  # older torch has no fused one for the CPU
        return torch.optim.AdamW([{"params": each} for each in words], rate, weight_decay=0.0)


def grad_scaler(device: torch.device) -> Any:
    """For fp16, under its name in old and new torch."""
    return torch.amp.GradScaler(device.type) if hasattr(torch.amp, "GradScaler") else torch.cuda.amp.GradScaler()
