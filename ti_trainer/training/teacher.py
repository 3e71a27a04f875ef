"""The teacher of an embedding that is learned from prompts: what the model itself predicts for them.

B batch, C latent channels, H W latent height and width.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ti_trainer.config.training import TrainConfig
from ti_trainer.data.dataset import Batch
from ti_trainer.embedding import word_pattern
from ti_trainer.model import Conditioning, DiffusionModel
from ti_trainer.training.step import encode_distinct

HALF = 0.5  # a slider at 1 goes halfway from one prompt to its opposite, from the middle between them


@dataclass(frozen=True)
class Teacher:
    """Predicts the noise for the batch's prompts with `prompt` in place of the embedding's name.

    With an `opposite`, the embedding is a slider (after Prompt Sliders, arXiv:2409.16535): the target is the prediction
    without the name, plus half of the difference between `prompt` and `opposite`, times the name's weight in the prompt.
    """

    name: str
    prompt: str
    opposite: str = ""

    @classmethod
    def of(cls, config: TrainConfig, name: str) -> Teacher | None:
        """The teacher that the options of a run describe; None if it learns from images."""
        return cls(name, config.teacher_prompt, config.opposite_prompt) if config.teacher_prompt else None

    @cached_property
    def _name(self) -> re.Pattern[str]:
        word = word_pattern(self.name).removeprefix("(?i)")
        return re.compile(rf"\({word}:(?P<weight>[+-]?\d+(?:\.\d+)?)\)|{word}", re.IGNORECASE)

    @torch.no_grad()
    def __call__(self, model: DiffusionModel, noisy_latents: Tensor, batch: Batch) -> Tensor:
        """The target (B, C, H, W) float32 for noisy latents of the same shape."""
        if not self.opposite:
            return self._predict(model, noisy_latents, batch, [self._with(self.prompt, each) for each in batch.prompts])
        prompts = [self._with(text, each) for text in ("", self.prompt, self.opposite) for each in batch.prompts]
        neutral, towards, away = self._predict(model, noisy_latents, batch, prompts).chunk(3)
        weights = torch.tensor([self._weight(each) for each in batch.prompts]).to(neutral.device, non_blocking=True)
        return neutral + HALF * weights[:, None, None, None] * (towards - away)

    def _predict(self, model: DiffusionModel, noisy_latents: Tensor, batch: Batch, prompts: list[str]) -> Tensor:
        times = len(prompts) // len(batch.prompts)
        cond: Conditioning = encode_distinct(model, prompts, {})
        repeated = noisy_latents.repeat(times, 1, 1, 1), batch.timesteps.repeat(times)  # (times B, C, H, W), (times B,)
        return model.predict(*repeated, cond, batch.images.repeat(times)).float()

    def without_name(self, prompt: str) -> str:
        """A prompt without the embedding."""
        return self._with("", prompt)

    def _with(self, text: str, prompt: str) -> str:
        """The prompt with a text in place of the name and its weight, without the commas around an empty one."""
        parts = self._name.sub(lambda _: text, prompt).split(",") if not text else [self._name.sub(lambda _: text, prompt)]
        return ", ".join(filter(None, map(str.strip, parts)))

    def _weight(self, prompt: str) -> float:
        found = self._name.search(prompt)
        return 1.0 if found is None or found["weight"] is None else float(found["weight"])
