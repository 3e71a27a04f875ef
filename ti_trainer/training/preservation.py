"""Prompt preservation: phrases beside the embedding change the prediction as they do beside its initial text.

For a prompt with an added phrase, the target of the loss is moved by what the phrase changes in the model's own prediction
where the initial text stands in place of the embedding. So the images' contents are still learned, and any phrase can be
trained with, although no image shows it. B batch, C latent channels, H W latent height and width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ti_trainer.data.dataset import Batch
from ti_trainer.data.phrases import Phrase, without_name
from ti_trainer.functional.objective import target
from ti_trainer.model import DiffusionModel
from ti_trainer.prompts import escaped

MOST_CHANGES = 2048  # that are kept: 0.5 GiB for SDXL at 1024 x 1024 px, with 1,024 images or 4 trials on one image


class Preservation:
    """The targets of samples, some of whose prompts have an added phrase, by the initial text of each trial's stream.

    What a phrase changes is kept, and used whenever its sample is repeated: `in_a_period` are at a time, for each trial.
    """

    def __init__(self, name: str, init_texts: Mapping[int, str], in_a_period: int) -> None:
        self._name, self._init_texts = name, init_texts
        self._changes: dict[tuple[int, int], Tensor] = {}  # (C, H, W) float32, by stream and sample
        self._most = min(2 * in_a_period * len(init_texts), MOST_CHANGES)  # of the present period, and of the last one

    @torch.no_grad()
    def __call__(self, model: DiffusionModel, noisy_latents: Tensor, batch: Batch) -> Tensor:
        """The target (B, C, H, W) for noisy latents of the same shape."""
        alphas_cumprod = model.alphas_cumprod[batch.timesteps]  # (B,)
        wanted = target(batch.latents, batch.noise, alphas_cumprod, model.spec.prediction_type)
        if not batch.phrases:
            return wanted
        rows = [
            each if phrase is None else each + self._change(model, noisy_latents, batch, row, phrase)
            for row, (each, phrase) in enumerate(zip(wanted, batch.phrases, strict=True))
        ]
        return torch.stack(rows)

    def _change(self, model: DiffusionModel, noisy_latents: Tensor, batch: Batch, row: int, phrase: Phrase) -> Tensor:
        """What the phrase of this row changes (C, H, W).

        It is computed for each sample by itself, so that a run which is resumed has exactly the same.
        """
        key = (phrase.stream, phrase.sample)
        if key not in self._changes:
            while len(self._changes) >= self._most:
                del self._changes[next(iter(self._changes))]
            # An initial text is not a prompt: vectors start from its tokens, with brackets as they are.
            text, one = escaped(self._init_texts[phrase.stream]), slice(row, row + 1)
            prompts = [without_name(each, self._name, text) for each in (batch.prompts[row], phrase.plain_prompt)]
            cond = model.encode_prompts(prompts, {})
            latents, timesteps = noisy_latents[one].repeat(2, 1, 1, 1), batch.timesteps[one].repeat(2)
            with_phrase, without = model.predict(latents, timesteps, cond, batch.images.of(one).repeat(2)).float()
            self._changes[key] = with_phrase - without
        return self._changes[key]
