"""The one seam towards whoever runs us: folders, the model that is loaded, a lock, and pictures drawn with it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image

from ti_trainer.model import DiffusionModel, Vectors


@dataclass(frozen=True)
class Drawing:
    """A picture to be generated; width and height 0 take what the model was made for."""

    prompt: str
    negative_prompt: str = ""
    steps: int = 20
    cfg_scale: float = 5.0
    seed: int = 1
    width: int = 0
    height: int = 0


class Host(Protocol):
    """What the trainer asks of the program around it."""

    embeddings_dir: Path
    log_dir: Path

    def open_model(self, precision: str = "auto", clip_skip: int = 1) -> DiffusionModel:
        """The checkpoint to train on; ModelError if there is none or it cannot be trained."""
        ...

    def lock(self) -> AbstractContextManager[None]:
        """Held during a run, so that nobody else uses the model meanwhile."""
        ...

    def draw(self, model: DiffusionModel, drawing: Drawing, words: Mapping[str, Vectors]) -> Image.Image:
        """Generate a picture in whose prompts the words stand for these vectors."""
        ...

    def embeddings_changed(self) -> None:
        """Called after a file of the embeddings folder was written."""
        ...
