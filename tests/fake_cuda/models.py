"""What a run trains on, on the pretended device: embeddings, and a dataset as it is after its images were encoded."""

from __future__ import annotations

from pathlib import Path

import torch

from ti_trainer.data.dataset import Dataset, Item
from ti_trainer.data.prompts import Prompter
from ti_trainer.data.subsets import Subset
from ti_trainer.embedding import Embedding
from ti_trainer.model import DiffusionModel

NAME = "x-word"


def embeddings_for(model: DiffusionModel, vectors: int = 2, *names: str) -> list[Embedding]:
    """Embeddings on the CPU."""
    shapes_of = {encoder: torch.zeros(vectors, width) for encoder, width in model.widths.items()}
    return [Embedding(name, shapes_of) for name in names or (NAME,)]


def dataset_for(
    model: DiffusionModel, size_px: int = 64, *, negative: str = "", random: bool = False, **changes: object
) -> Dataset:
    """One image twice, as it is after encoding; tags are shuffled, so that nearly every prompt is new."""
    size = size_px // 8
    latents = torch.zeros(4, size, size)
    masked = torch.zeros(5, size, size) if model.spec.inpainting else None
    item = Item(
        path=Path("image.png"),
        caption="red, round, small, (old:1.2)",
        latents=latents,
        std=latents if random else None,
        weight=torch.ones_like(latents[:1]),
        sizes=(size_px, size_px, 0, 0, size_px, size_px),
        masked=masked,
        subset=Subset(Path()),
        **changes,  # type: ignore[arg-type]
    )
    prompter = Prompter(NAME, ("a photo of [name], [filewords]",), shuffle_tags=True, negative=negative)
    return Dataset((item, item), (), prompter, 0, len(model.alphas_cumprod))
