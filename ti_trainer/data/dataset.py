"""The data set as the trainer sees it: latents on the device, prompts, and everything random about a sample.

What is random in a sample follows from the seed and the sample's number alone. So batches and accumulation agree, previews
disturb nothing, and a run goes on exactly where it stopped. B batch, C latent channels, H W latent height and width.
"""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ti_trainer.data.images import Frame, find_images, load_image
from ti_trainer.data.prompts import Prompter, caption_of
from ti_trainer.errors import DatasetError
from ti_trainer.model import DiffusionModel

log = logging.getLogger(__name__)
_LATENTS_STREAM = 2**63  # sample numbers stay below


@dataclass(frozen=True)
class Item:
    """One picture: latents (C, H, W), their standard deviation if drawn anew each time, its loss weight (1, H, W)."""

    path: Path
    caption: str
    latents: Tensor
    std: Tensor | None
    weight: Tensor | None


@dataclass(frozen=True)
class Batch:
    """What one forward pass needs: latents and noise (B, C, H, W), timesteps (B,), a loss weight (B, 1, H, W) or None."""

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    prompts: tuple[str, ...]
    weight: Tensor | None


def sample_rng(seed: int, number: int) -> np.random.Generator:
    """The source of all that is random about one sample."""
    return np.random.Generator(np.random.Philox(key=seed, counter=number << 64))


@dataclass(frozen=True)
class Dataset:
    """The pictures of a folder, encoded; `skipped` says which could not be used and why."""

    items: tuple[Item, ...]
    skipped: tuple[tuple[Path, str], ...]
    prompter: Prompter
    seed: int
    num_timesteps: int
    repeats: int = 1

    @property
    def epoch_length(self) -> int:
        """Samples in an epoch."""
        return len(self.items) * self.repeats

    @cached_property
    def fingerprint(self) -> str:
        """Changes when the pictures, their captions or their order do."""
        digest = hashlib.sha256()
        for item in self.items:
            digest.update(f"{item.path.name}\0{item.caption}\0{tuple(item.latents.shape)}".encode())
            digest.update(item.latents.float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def order(self) -> Iterator[int]:
        """Items without end; every epoch is a permutation of all, each `repeats` times."""
        epoch = 0
        while True:
            order = np.random.default_rng((self.seed, epoch)).permutation(self.epoch_length)
            yield from (order % len(self.items)).tolist()
            epoch += 1

    def batches(self, batch_size: int, start: int = 0) -> Iterator[Batch]:
        """Batches of pictures of one size, none incomplete: pictures wait, over epochs if need be, for a full batch.

        The first `start` batches are left out.
        """
        waiting: dict[torch.Size, list[tuple[int, int]]] = defaultdict(list)
        made = 0
        for number, index in enumerate(self.order()):
            group = waiting[self.items[index].latents.shape]
            group.append((number, index))
            if len(group) == batch_size:
                if made >= start:
                    yield self.batch(group)
                made += 1
                group.clear()

    def batch(self, samples: Sequence[tuple[int, int]]) -> Batch:
        """The batch of these samples, each its number in the run and the index of its item."""
        prompts, timesteps, latents, noise = [], [], [], []
        for number, index in samples:
            item, rng = self.items[index], sample_rng(self.seed, number)
            prompts.append(self.prompter(item.caption, rng))
            timesteps.append(int(rng.integers(self.num_timesteps)))
            noise.append(_normal(item.latents, rng))
            drawn = (
                item.latents
                if item.std is None
                else item.latents + item.std * _normal(item.latents, rng).to(item.std.device)
            )
            latents.append(drawn)
        device = latents[0].device
        weights = [self.items[index].weight for _, index in samples]
        weight = None
        if any(each is not None for each in weights):
            ones = torch.ones_like(latents[0][:1])
            weight = torch.stack([ones if each is None else each for each in weights])
        return Batch(
            torch.stack(latents),
            torch.stack(noise).to(device),
            torch.tensor(timesteps).to(device),
            tuple(prompts),
            weight,
        )


def _normal(like: Tensor, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.standard_normal(tuple(like.shape), np.float32))


def load_dataset(
    folder: Path,
    model: DiffusionModel,
    frame: Frame,
    prompter: Prompter,
    *,
    seed: int,
    repeats: int = 1,
    latent_sampling: str = "once",
    word_regex: str = "",
    join_string: str = " ",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Dataset:
    """Read and encode every picture of the folder, one at a time. DatasetError if none can be used."""
    items: list[Item] = []
    skipped: list[tuple[Path, str]] = []
    paths = find_images(folder)
    for number, path in enumerate(paths):
        try:
            pixels, alpha = load_image(path, frame)
        except Exception as error:  # a damaged file provokes anything
            skipped.append((path, str(error) or type(error).__name__))
            log.warning("Skipped: %s (%s)", path.name, skipped[-1][1])
            continue
        finally:
            progress(number + 1, len(paths))
        caption = caption_of(path, word_regex, join_string)
        with torch.no_grad():
            mean, std = (part[0] for part in model.encode_images(pixels[None]))  # (C, H, W)
        if latent_sampling == "once":
            mean = mean + std * _normal(mean, sample_rng(seed, _LATENTS_STREAM + len(items))).to(mean.device)
        weight = None if alpha is None else alpha_weight(alpha, mean)
        items.append(Item(path, caption, mean, std if latent_sampling == "random" else None, weight))
    if not items:
        reasons = "; ".join(f"{path.name}: {reason}" for path, reason in skipped[:5])
        message = f"None of the {len(paths)} pictures in {folder} can be used ({reasons}). Put readable pictures there."
        raise DatasetError(message)
    return Dataset(tuple(items), tuple(skipped), prompter, seed, len(model.alphas_cumprod), repeats)


def alpha_weight(alpha: Tensor, latents: Tensor) -> Tensor:
    """(1, H, W) of mean 1 from alpha (1, 8 H, 8 W): less its minimum, over its mean, as in the WebUI; ones if constant."""
    small = interpolate(alpha[None].to(latents.device), latents.shape[-2:], mode="area")[0]
    small = small - small.min()
    mean = small.mean()
    return small / mean if mean > 0 else torch.ones_like(small)
