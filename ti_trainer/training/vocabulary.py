"""The scale of a model's token embeddings, which learning rates and norms are measured by."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ti_trainer.model import DiffusionModel

# Their mean norm and spread are within 5% of those of the embedded model's whole vocabulary.
WORDS = "a photo of the old house with two small red dogs on green grass near water and a big white car under blue sky"


@dataclass(frozen=True)
class Vocabulary:
    """Of common words, by text encoder: the median norm of their vectors, and the standard deviation of the elements."""

    norms: dict[str, float]
    spreads: dict[str, float]

    @classmethod
    def of(cls, model: DiffusionModel) -> Vocabulary:
        """Measure a model's vocabulary."""
        tokens = {encoder: each.float() for encoder, each in model.token_embeddings(WORDS).items()}
        tiny = torch.finfo(torch.float32).tiny
        return cls(
            {encoder: max(float(each.norm(dim=1).median()), tiny) for encoder, each in tokens.items()},
            {encoder: max(float(each.std()), tiny) for encoder, each in tokens.items()},
        )

    @property
    def spread(self) -> float:
        """The mean of the spreads: the text encoders of a model share one learning rate."""
        return sum(self.spreads.values()) / len(self.spreads)
