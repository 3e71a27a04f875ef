"""Prompt preservation: phrases beside the embedding change the prediction as they do beside its initial text.

For a prompt with an added phrase, the target of the loss is moved by what the phrase changes in the model's own prediction
where the initial text stands in place of the embedding. So the images' contents are still learned, and any phrase can be
trained with, although no image shows it. B batch, C latent channels, H W latent height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ti_trainer.config.training import TrainConfig
from ti_trainer.data.dataset import Batch
from ti_trainer.data.phrases import without_name
from ti_trainer.embedding import Embedding
from ti_trainer.functional.objective import target
from ti_trainer.model import DiffusionModel, ImageConditioning
from ti_trainer.prompts import escaped
from ti_trainer.training.step import encode_distinct


@dataclass(frozen=True)
class Preservation:
    """The targets of samples, some of whose prompts have an added phrase, for an embedding with these initial texts.

    There is one for each trial, which has an equal part of the batch.
    """

    name: str
    init_texts: Sequence[str]

    @classmethod
    def of(cls, config: TrainConfig, embedding: Embedding) -> Preservation | None:
        """None if no prompts get phrases."""
        return cls(embedding.name, [str(embedding.info.get("init_text") or "")]) if config.phrase_share else None

    @torch.no_grad()
    def __call__(self, model: DiffusionModel, noisy_latents: Tensor, batch: Batch) -> Tensor:
        """The target (B, C, H, W) for noisy latents of the same shape."""
        alphas_cumprod = model.alphas_cumprod[batch.timesteps]  # (B,)
        wanted = target(batch.latents, batch.noise, alphas_cumprod, model.spec.prediction_type)
        rows = [row for row, plain in enumerate(batch.plain_prompts) if plain is not None]
        if not rows:
            return wanted
        changes = dict(zip(rows, self._changes(model, noisy_latents, batch, rows), strict=True))
        return torch.stack([each + changes[row] if row in changes else each for row, each in enumerate(wanted)])

    def _changes(self, model: DiffusionModel, noisy_latents: Tensor, batch: Batch, rows: list[int]) -> Tensor:
        """What the phrases of these rows change (rows, C, H, W) float32."""
        twice = [*rows, *rows]
        prompts = [*(batch.prompts[row] for row in rows), *(batch.plain_prompts[row] or "" for row in rows)]
        # An initial text is not a prompt: vectors start from its tokens, with brackets as they are.
        texts = [escaped(self.init_texts[row * len(self.init_texts) // len(batch.prompts)]) for row in twice]
        in_words = [without_name(each, self.name, text) for each, text in zip(prompts, texts, strict=True)]
        cond = encode_distinct(model, in_words, {})
        masked = None if batch.images.masked is None else _chosen(batch.images.masked, twice)
        images = ImageConditioning(_chosen(batch.images.sizes, twice), masked)
        with_phrases, without = (
            model.predict(_chosen(noisy_latents, twice), _chosen(batch.timesteps, twice), cond, images).float().chunk(2)
        )
        return with_phrases - without


def _chosen(rows: Tensor, numbers: list[int]) -> Tensor:
    """Some rows, stacked one by one: indexing with a list would wait for the GPU."""
    return torch.stack([rows[number] for number in numbers])
