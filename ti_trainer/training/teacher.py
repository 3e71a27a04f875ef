"""The teacher of an embedding that is learned from prompts or a LoRA: what the model itself predicts for them.

B batch, C latent channels, H W latent height and width.
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ti_trainer.config.training import TrainConfig
from ti_trainer.data.dataset import Batch
from ti_trainer.embedding import negative_name, word_pattern
from ti_trainer.lora import Lora
from ti_trainer.model import DiffusionModel
from ti_trainer.prompts import escaped
from ti_trainer.training.step import encode_distinct


@dataclass(frozen=True)
class Teacher:
    """Predicts the noise for the batch's prompts with `prompt` in place of the embedding's name.

    With an `opposite`, the embedding is a slider (after Prompt Sliders, arXiv:2409.16535): where its name has a negative
    weight in a prompt, `opposite` takes its place. With a `lora`, the model predicts with it; the prompt may be empty.
    With a `negative_prompt`, this takes the place of the negative embedding's name.
    """

    name: str
    prompt: str
    opposite: str = ""
    lora: Lora | None = None
    lora_weight: float = 1.0
    negative_prompt: str = ""

    @classmethod
    def of(cls, config: TrainConfig, name: str, lora: Lora | None = None) -> Teacher | None:
        """The teacher that the options of a run describe, with the LoRA that they name; None if it learns from images."""
        if not config.has_teacher:
            return None
        if config.teacher_lora and lora is None:
            message = "the LoRA that the options name is missing"
            raise ValueError(message)
        prompts = (config.teacher_prompt, config.opposite_prompt)
        return cls(name, *prompts, lora, config.teacher_lora_weight, config.teacher_negative_prompt)

    @property
    def label(self) -> str:
        """What it is, for images: its prompt, and the LoRA as the WebUI writes it."""
        lora = "" if self.lora is None else f"<lora:{self.lora.name}:{self.lora_weight:g}>"
        return " ".join(filter(None, (self.prompt, lora)))

    def adapting(self, model: DiffusionModel) -> AbstractContextManager[None]:
        """Within it the model computes as the teacher does."""
        return nullcontext() if self.lora is None else model.with_lora(self.lora, self.lora_weight)

    @cached_property
    def _names(self) -> re.Pattern[str]:
        names = (self.name, negative_name(self.name))[: 2 if self.negative_prompt else 1]
        word = "|".join(word_pattern(each).removeprefix("(?i)") for each in names)
        return re.compile(rf"\((?P<weighted>{word}):(?P<weight>[+-]?\d+(?:\.\d+)?)\)|(?P<plain>{word})", re.IGNORECASE)

    @torch.no_grad()
    def __call__(self, model: DiffusionModel, noisy_latents: Tensor, batch: Batch) -> Tensor:
        """The target (B, C, H, W) float32 for noisy latents of the same shape."""
        with self.adapting(model):
            cond = encode_distinct(model, [self.in_full(each) for each in batch.prompts], {})
            return model.predict(noisy_latents, batch.timesteps, cond, batch.images).float()

    def in_full(self, prompt: str) -> str:
        """A prompt with what the embedding is to mean in place of its name."""
        return self._names.sub(self._meaning, prompt) if self.prompt else self.without_name(prompt)

    def without_name(self, prompt: str) -> str:
        """A prompt without the embedding, and without the commas around it."""
        return ", ".join(filter(None, map(str.strip, self._names.sub("", prompt).split(","))))

    def _meaning(self, found: re.Match[str]) -> str:
        name = found["weighted"] or found["plain"]
        if name.casefold() != escaped(self.name).casefold():
            return self.negative_prompt
        return self.opposite if self.opposite and (found["weight"] or "").startswith("-") else self.prompt
