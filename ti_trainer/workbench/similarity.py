"""Similarity of images to images and to texts, by a CLIP or DINO in a folder of transformers.

As in DreamBooth (arXiv:2208.12242) and its DreamBench: cosines of CLIP's embeddings (CLIP-I, CLIP-T), or of the first token
of DINO's last layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from ti_trainer.data.image_files import find_images
from ti_trainer.data.open_image import on_white, opened_image
from ti_trainer.data.subsets import Subset
from ti_trainer.data.upright import upright
from ti_trainer.errors import ConfigError
from ti_trainer.formats import network_config
from ti_trainer.training.discriminator import CONFIG, WEIGHTS, input_format


@dataclass(frozen=True)
class Similarity:
    """Embeds images and, with CLIP, texts; rows (N, d) of length 1, whose products are cosines."""

    network: Any
    tokenizer: Any  # None for networks without a text encoder
    side: int
    mean: Tensor  # (3, 1, 1)
    std: Tensor  # (3, 1, 1)
    device: torch.device

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> Similarity:
        """Load a folder with config.json and model.safetensors; ConfigError if it cannot be used."""
        if not all((folder / name).is_file() for name in (WEIGHTS, CONFIG)):
            message = f"Similarity: found {folder}, expected a folder with {CONFIG} and {WEIGHTS} of a CLIP or a DINO."
            raise ConfigError(message, "similarity")
        try:
            return cls._load(folder, device)
        except Exception as error:  # an unusual folder can raise anything
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            message = f"Similarity: {folder} cannot be used ({reason}). Expected a CLIP or a DINO of transformers."
            raise ConfigError(message, "similarity") from error

    @classmethod
    def _load(cls, folder: Path, device: torch.device) -> Similarity:
        from transformers import AutoModel, AutoTokenizer

        network_config.read(folder / CONFIG)
        safe = {"local_files_only": True, "trust_remote_code": False}
        with network_config.offline():
            network = AutoModel.from_pretrained(folder, use_safetensors=True, **safe)
            has_text = hasattr(network, "get_text_features")
            tokenizer = AutoTokenizer.from_pretrained(folder, **safe) if has_text else None
        network.to(device, torch.float32).eval()
        side, mean, std = input_format(folder)
        return cls(network, tokenizer, side, _plane(mean, device), _plane(std, device), device)

    @torch.no_grad()
    def of_images(self, images: Sequence[Image.Image]) -> Tensor:
        """(N, d) for N images, whose shorter side is resized and whose middle is used."""
        pixels = torch.cat([self._pixels(each) for each in images])  # (N, 3, side, side)
        if self.tokenizer is not None:
            return normalize(_features(self.network.get_image_features(pixel_values=pixels)), dim=1)
        return normalize(self.network(pixel_values=pixels).last_hidden_state[:, 0], dim=1)

    @torch.no_grad()
    def of_texts(self, texts: Sequence[str]) -> Tensor:
        """(N, d) for N texts; ConfigError if the network has no text encoder."""
        if self.tokenizer is None:
            message = "Similarity: this network has no text encoder, so only images can be compared: use a CLIP for texts."
            raise ConfigError(message, "similarity")
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(self.device)
        return normalize(_features(self.network.get_text_features(**tokens)), dim=1)

    def _pixels(self, image: Image.Image) -> Tensor:
        """(1, 3, side, side), normalized as the network expects."""
        values = torch.from_numpy(np.asarray(image.convert("RGB"), np.float32) / 255).permute(2, 0, 1)[None].to(self.device)
        height, width = values.shape[-2:]
        scale = self.side / min(height, width)
        size = [max(self.side, round(each * scale)) for each in (height, width)]
        values = interpolate(values, size, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = ((each - self.side) // 2 for each in size)
        return (values[..., top : top + self.side, left : left + self.side] - self.mean) / self.std


def _plane(values: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device).view(3, 1, 1)


def _features(output: Any) -> Tensor:
    """The projected features: a tensor, or in newer versions of transformers part of an output."""
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features


def images_of(subsets: Sequence[Subset], most: int | None = None) -> Iterator[Image.Image]:
    """The images of a dataset in RGB, without its regularization images; at most `most`, evenly spread."""
    paths = [path for subset in subsets if not subset.is_reg for path in find_images(subset.folder)]
    count = min(most or len(paths), len(paths))
    for number in range(count):
        with opened_image(paths[number * len(paths) // count]) as opened:
            yield on_white(upright(opened))
