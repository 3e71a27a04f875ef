"""One update: loss of a batch, then unscale, clip, step. Knows no dataset and no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ti_trainer.data.dataset import Batch
from ti_trainer.functional.guidance import GuidanceScale, guided
from ti_trainer.functional.objective import add_noise, clean_latents, denoising_loss, target
from ti_trainer.model import Conditioning, DiffusionModel, ImageConditioning, Vectors
from ti_trainer.training.pixel_loss import PixelLoss

Words = Mapping[str, Vectors]


def training_loss(
    model: DiffusionModel,
    batch: Batch,
    words: Words | Sequence[Words],
    scale: GuidanceScale | None = None,
    pixel_loss: PixelLoss | None = None,
) -> Tensor:
    """The denoising loss of each sample, (B,), differentiable in the words' vectors.

    With a scale, of what a sampler would follow that is guided away from the batch's negative prompts. With a loss of
    pixels, that of the clean images which this estimates is added. Of several `words` each has an equal part of the
    batch, in which only its own vectors stand for their names.
    """
    alphas_cumprod = model.alphas_cumprod[batch.timesteps]  # (B,)
    noisy_latents = add_noise(batch.latents, batch.noise, alphas_cumprod)
    wanted = target(batch.latents, batch.noise, alphas_cumprod, model.spec.prediction_type)
    prediction = _prediction(model, batch, noisy_latents, [words] if isinstance(words, Mapping) else words, scale)
    loss = denoising_loss(prediction, wanted, batch.weight)
    if pixel_loss is None:
        return loss
    estimate = clean_latents(noisy_latents, prediction, alphas_cumprod, model.spec.prediction_type)
    return loss + pixel_loss(model, estimate, batch)


def _prediction(
    model: DiffusionModel, batch: Batch, noisy_latents: Tensor, words: Sequence[Words], scale: GuidanceScale | None
) -> Tensor:
    """(B, C, H, W). The U-Net is called once, but for parts whose prompts have other numbers of chunks: it sees padding."""
    count, times = len(batch.prompts) // len(words), 1 if scale is None else 2
    rows = [slice(number * count, (number + 1) * count) for number in range(len(words))]
    unsaid = batch.negative_prompts if times == 2 else ()
    conds = [
        encode_distinct(model, [*unsaid[part], *batch.prompts[part]], own) for part, own in zip(rows, words, strict=True)
    ]
    parts: dict[int, Tensor] = {}
    for length in dict.fromkeys(each.hidden.shape[1] for each in conds):
        those = [number for number, each in enumerate(conds) if each.hidden.shape[1] == length]
        latents = _joined([noisy_latents[rows[each]] for each in those for _ in range(times)])
        timesteps = _joined([batch.timesteps[rows[each]] for each in those for _ in range(times)])
        images = [batch.images.of(rows[each]).repeat(times) for each in those]
        cond = Conditioning(
            _joined([conds[each].hidden for each in those]),
            None if conds[0].pooled is None else _joined([conds[each].pooled for each in those]),
        )
        told = ImageConditioning(
            _joined([each.sizes for each in images]),
            None if batch.images.masked is None else _joined([each.masked for each in images]),
        )
        predicted = model.predict(latents, timesteps, cond, told)
        parts |= dict(zip(those, predicted.chunk(len(those)), strict=True))
    in_order = [parts[number] for number in range(len(words))]
    if scale is None:
        return _joined(in_order)
    halves = [each.float().chunk(2) for each in in_order]
    negative, positive = (_joined(each) for each in zip(*halves, strict=True))
    return guided(negative, positive, scale.at(batch.timesteps, len(model.alphas_cumprod)))


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


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
