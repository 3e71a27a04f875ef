"""One update: the loss of a batch, then unscale, clip and step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ti_trainer.data.dataset import Batch
from ti_trainer.functional.guidance import GuidanceScale, guided
from ti_trainer.functional.objective import PredictionType, add_noise, clean_latents, denoising_loss, target
from ti_trainer.model import Conditioning, DiffusionModel, ImageConditioning, Vectors
from ti_trainer.training.pixel_loss import PixelLoss

if TYPE_CHECKING:
    from torch.amp import GradScaler

Embeddings = Mapping[str, Vectors]  # by the names that they have in prompts
TargetFunction = Callable[[DiffusionModel, Tensor, Batch], Tensor]  # noisy latents (B, C, H, W) -> target (B, C, H, W)


def training_loss(
    model: DiffusionModel,
    batch: Batch,
    embeddings: Embeddings | Sequence[Embeddings],
    scale: GuidanceScale | None = None,
    pixel_loss: PixelLoss | None = None,
    weighting: Callable[[Tensor, PredictionType], Tensor] | None = None,
    teacher: TargetFunction | None = None,
) -> Tensor:
    """The loss of each sample (B,), differentiable in the embeddings' vectors.

    With a scale, the prediction is guided away from the batch's negative prompts. `weighting` gives the denoising loss
    weights (B,) by alphas_cumprod (B,) and prediction type. The pixel loss of the estimated clean latents is added. A
    teacher gives the target instead of the noise that was added. With several `embeddings`, each gets an equal part of the
    batch, in which its vectors stand for their names.
    """
    alphas_cumprod = model.alphas_cumprod[batch.timesteps]  # (B,)
    noisy_latents = add_noise(batch.latents, batch.noise, alphas_cumprod)
    if teacher is None:
        wanted = target(batch.latents, batch.noise, alphas_cumprod, model.spec.prediction_type)
    else:
        wanted = teacher(model, noisy_latents, batch)
    several = [embeddings] if isinstance(embeddings, Mapping) else embeddings
    prediction = _prediction(model, batch, noisy_latents, several, scale)
    loss = denoising_loss(prediction, wanted, batch.weight)
    if weighting is not None:
        loss = loss * weighting(alphas_cumprod, model.spec.prediction_type)
    if pixel_loss is None:
        return loss
    if teacher is not None:  # pixels are compared with the image: what a phrase is to change would be unlearned
        of_images = target(batch.latents, batch.noise, alphas_cumprod, model.spec.prediction_type)
        prediction = prediction - (wanted - of_images)
    estimate = clean_latents(noisy_latents, prediction, alphas_cumprod, model.spec.prediction_type)
    return loss + pixel_loss(model, estimate, batch)


def _prediction(
    model: DiffusionModel, batch: Batch, noisy_latents: Tensor, several: Sequence[Embeddings], scale: GuidanceScale | None
) -> Tensor:
    """The prediction (B, C, H, W), in one call of the U-Net for all parts whose prompts have the same number of chunks.

    The others need calls of their own: the U-Net attends to padding.
    """
    count, times = len(batch.prompts) // len(several), 1 if scale is None else 2
    rows = [slice(number * count, (number + 1) * count) for number in range(len(several))]
    negative_prompts = batch.negative_prompts if times == 2 else ()
    conds = [
        encode_distinct(model, [*negative_prompts[part], *batch.prompts[part]], own)
        for part, own in zip(rows, several, strict=True)
    ]
    parts: dict[int, Tensor] = {}
    for length in dict.fromkeys(each.hidden.shape[1] for each in conds):
        those = [number for number, each in enumerate(conds) if each.hidden.shape[1] == length]
        latents = _joined([noisy_latents[rows[each]] for each in those for _ in range(times)])
        timesteps = _joined([batch.timesteps[rows[each]] for each in those for _ in range(times)])
        images = [batch.images.of(rows[each]).repeat(times) for each in those]
        cond = Conditioning(
            _joined([conds[each].hidden for each in those]), _joined_optional([conds[each].pooled for each in those])
        )
        joined_images = ImageConditioning(
            _joined([each.sizes for each in images]), _joined_optional([each.masked for each in images])
        )
        predicted = model.predict(latents, timesteps, cond, joined_images)
        parts |= dict(zip(those, predicted.chunk(len(those)), strict=True))
    in_order = [parts[number] for number in range(len(several))]
    if scale is None:
        return _joined(in_order)
    halves = [each.float().chunk(2) for each in in_order]
    negative, positive = (_joined(each) for each in zip(*halves, strict=True))
    return guided(negative, positive, scale.at(batch.timesteps, len(model.alphas_cumprod)))


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _joined_optional(parts: Sequence[Tensor | None]) -> Tensor | None:
    there = [each for each in parts if each is not None]
    return _joined(there) if there else None


def encode_distinct(model: DiffusionModel, prompts: Sequence[str], embeddings: Embeddings) -> Conditioning:
    """The result of `encode_prompts`, with each prompt encoded once even if it occurs several times."""
    distinct = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
    cond = model.encode_prompts(list(distinct), embeddings)
    if len(distinct) == len(prompts):
        return cond
    rows = [distinct[prompt] for prompt in prompts]  # stacked one by one: indexing with them would wait for the GPU
    pooled = None if cond.pooled is None else torch.stack([cond.pooled[row] for row in rows])
    return Conditioning(torch.stack([cond.hidden[row] for row in rows]), pooled)


def optimizer_step(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    scaler: GradScaler | None,
    clip_grad: str = "disabled",
    clip_grad_limit: float = 0.0,
    *,
    ask: bool = True,
) -> bool:
    """Update the parameters from their gradients, which are unscaled before they are clipped and cleared afterwards.

    The caller updates the scaler once all its optimizers are done. Returns False if the update was skipped because gradients
    overflowed; without `ask` that is not checked, since it makes the CPU wait for the GPU.
    """
    updated = True
    if scaler is not None:
        scaler.unscale_(optimizer)
        if ask:
            updated = bool(torch.stack([each.grad.isfinite().all() for each in parameters if each.grad is not None]).all())
    if clip_grad == "value":
        torch.nn.utils.clip_grad_value_(parameters, clip_grad_limit)
    elif clip_grad == "norm":
        torch.nn.utils.clip_grad_norm_(parameters, clip_grad_limit)
    if scaler is None:
        optimizer.step()
    elif updated:
        scaler.step(optimizer)  # which itself skips the update where gradients overflowed
    for each in parameters:
        each.grad = None
    return updated


def grad_scaler(device: torch.device) -> GradScaler:
    """A gradient scaler for fp16, which older versions of torch keep under torch.cuda."""
    return torch.amp.GradScaler(device.type) if hasattr(torch.amp, "GradScaler") else torch.cuda.amp.GradScaler()
