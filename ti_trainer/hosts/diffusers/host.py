"""Host for a run without a WebUI: folders that the user named and a model loaded by diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ti_trainer.host import Drawing
from ti_trainer.hosts.diffusers import loading, sampling
from ti_trainer.hosts.diffusers.model import DiffusersModel
from ti_trainer.model import Vectors


@dataclass
class StandaloneHost:
    """`model` is `embedded`, a folder in diffusers' layout or a checkpoint file; `device` a torch device or `auto`."""

    model: str = "embedded"
    device: str = "auto"
    embeddings_dir: Path = Path("embeddings")
    log_dir: Path = Path("textual_inversion")

    def open_model(self, precision: str = "auto", clip_skip: int = 1) -> DiffusersModel:
        """Load it; ModelError if that cannot be done."""
        return loading.load(self.model, self.device, precision, clip_skip)

    def lock(self) -> AbstractContextManager[None]:
        """Nobody else uses the model."""
        return nullcontext()

    def draw(self, model: DiffusersModel, drawing: Drawing, words: Mapping[str, Vectors]) -> Image.Image:
        """Generate a picture."""
        return sampling.draw(model, drawing, words)

    def embeddings_changed(self) -> None:
        """Nothing here keeps a list."""
