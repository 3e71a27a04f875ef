"""A Stable Diffusion in a page, and a host for it: a step takes a millisecond, and everything that should matter does."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event as Flag

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from ti_trainer.errors import ConfigError
from ti_trainer.model import Conditioning, Vectors
from ti_trainer.prompts import PromptTokenizer, TokenizedPrompt

D = 8


class TinyModel:
    """A DiffusionModel. B batch, C = 4 latent channels, H W, V vectors, D width of a token."""

    name, checkpoint_hash, device = "tiny", "0123456789", torch.device("cpu")
    prediction_type, needs_loss_scaling, default_size_px = "epsilon", False, 16
    widths: Mapping[str, int] = {"clip_l": D}

    def __init__(self) -> None:
        self.alphas_cumprod = torch.linspace(0.99, 0.01, 100)
        generator = torch.Generator().manual_seed(0)
        self.mix, self.out = torch.randn(D, D, generator=generator), torch.randn(D, 4, generator=generator)
        self.in_training = False

    @contextmanager
    def training(self) -> Iterator[None]:
        self.in_training = True
        try:
            yield
        finally:
            self.in_training = False

    def tokenize(self, prompt: str, words: Mapping[str, Vectors]) -> TokenizedPrompt:
        counts = {name: len(each["clip_l"]) for name, each in words.items()}
        split = PromptTokenizer(
            lambda text: [zlib.crc32(w.encode()) % 900 + 1 for w in _split(text)], 998, 999, 999, 997, counts
        )
        return split(prompt)

    def token_text(self, token_id: int) -> str:
        return f"t{token_id}"

    def token_embeddings(self, text: str) -> dict[str, Tensor]:
        rows = [torch.randn(D, generator=torch.Generator().manual_seed(zlib.crc32(word.encode()))) for word in text.split()]
        return {"clip_l": torch.stack(rows) if rows else torch.zeros(0, D)}

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        small = avg_pool2d(pixels, 8)
        mean = torch.cat([small, small.mean(1, keepdim=True)], 1)  # (B, C, H, W)
        return mean, torch.full_like(mean, 0.3)

    def encode_prompts(self, prompts: Sequence[str], words: Mapping[str, Vectors]) -> Conditioning:
        hidden = []
        for prompt in prompts:
            parts = [
                words[each]["clip_l"] if each in words else self.token_embeddings(each)["clip_l"] for each in _split(prompt)
            ]
            place = torch.linspace(0.5, 1.5, sum(map(len, parts)))[:, None]  # the order of words counts
            hidden.append((torch.cat(parts) * place @ self.mix).tanh().mean(0, keepdim=True))
        return Conditioning(torch.stack(hidden))  # (B, 1, D)

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, cond: Conditioning) -> Tensor:
        text = (cond.hidden[:, 0] @ self.out)[..., None, None]  # (B, C, 1, 1)
        return (noisy_latents * text + text * timesteps[:, None, None, None] / 100).tanh()

    def decode(self, latents: Tensor) -> Tensor:
        return interpolate(latents[:, :3], scale_factor=8.0)


def _split(prompt: str) -> list[str]:
    return re.findall(r"[\w-]+", prompt) or ["nothing"]


@dataclass
class TinyHost:
    """A Host over TinyModel. Drawing uses up the process's random numbers, as careless hosts do."""

    folder: Path
    model: TinyModel = field(default_factory=TinyModel)
    changes: int = 0
    shown: int = 0
    told: list[tuple[int, int, str]] = field(default_factory=list)
    interrupt: Flag = field(default_factory=Flag)
    template_dirs: Sequence[Path] = ()
    samplers: Sequence[str] = ("Euler", "DDIM")
    defaults: Mapping[str, object] = field(default_factory=dict)
    fixed: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self.embeddings_dir, self.log_dir = self.folder / "embeddings", self.folder / "logs"

    def describe(self) -> str:
        return self.model.name

    def open_model(self, precision: str = "auto", clip_skip: int = 1) -> TinyModel:
        return self.model

    @contextmanager
    def lock(self) -> Iterator[TinyHost]:
        yield self

    def interrupted(self) -> bool:
        return self.interrupt.is_set()

    def progress(self, done: int, total: int, text: str) -> None:
        self.told.append((done, total, text))

    def show(self, picture: Image.Image) -> None:
        self.shown += 1

    def check_folder(self, folder: Path) -> None:
        if folder.name == "forbidden":
            raise ConfigError("that folder is not for the page")

    def draw(self, model: TinyModel, drawing: object, words: Mapping[str, Vectors]) -> Image.Image:
        shade = int(torch.rand(()) * 255)
        return Image.new("RGB", (16, 16), (shade, shade, shade))

    def embeddings_changed(self) -> None:
        self.changes += 1
