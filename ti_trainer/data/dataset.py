"""The dataset as the trainer sees it: latents on the device, prompts, and everything random about a sample.

What is random in a sample follows from the seed and the sample's number alone. So batches and accumulation agree, previews
disturb nothing, and a run goes on exactly where it stopped. B batch, C latent channels, H W latent height and width.
"""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ti_trainer.data.images import Frame, load_image
from ti_trainer.data.plan import Captions, Warn, plan
from ti_trainer.data.prompts import Prompter
from ti_trainer.data.subsets import Subset, read_subsets
from ti_trainer.errors import DatasetError
from ti_trainer.functional.mask_weight import mask_weight
from ti_trainer.model import DiffusionModel, ImageConditioning
from ti_trainer.wording import counted

log = logging.getLogger(__name__)
_LATENTS_STREAM = 2**63  # sample numbers stay below


@dataclass(frozen=True)
class Item:
    """One image: latents (C, H, W), their standard deviation if drawn anew each time, its loss weight (1, H, W).

    What some models are told of it besides: `sizes` as in `Loaded`, and `masked` (1 + C, H, W) for inpainting. It comes up
    `repeats` times in an epoch, times the dataset's own repeats. `pixels` (3, 8 H, 8 W) uint8, if kept, are on the CPU.
    `share` is how much all of it counts, for losses that have no places; the weight has it in it.
    """

    path: Path
    caption: str | None
    latents: Tensor
    std: Tensor | None
    weight: Tensor | None
    sizes: tuple[int, ...]
    masked: Tensor | None
    subset: Subset
    repeats: int = 1
    has_mask: bool = False
    pixels: Tensor | None = None
    share: float = 1.0
    caption_file: Path | None = None


@dataclass(frozen=True)
class Batch:
    """What one forward pass needs: latents and noise (B, C, H, W), timesteps (B,), a loss weight (B, 1, H, W) or None.

    `negative_prompts` are what is guided away from, none in plain Textual Inversion. Pixels (B, 3, 8 H, 8 W) uint8, on the
    CPU, are there for losses of pixels only. `shares` (B,) is the weights' part that is the same all over an image, or
    None if each counts once.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    prompts: tuple[str, ...]
    weight: Tensor | None
    images: ImageConditioning
    negative_prompts: tuple[str, ...] = ()
    pixels: Tensor | None = None
    shares: Tensor | None = None


def sample_rng(seed: int, number: int, stream: int = 0) -> np.random.Generator:
    """The source of all that is random about one sample; each stream has other numbers of it."""
    return np.random.Generator(np.random.Philox(key=seed, counter=(stream << 128) + (number << 64)))


@dataclass(frozen=True)
class Dataset:
    """The images of all subsets, encoded; `skipped` says which could not be used and why."""

    items: tuple[Item, ...]
    skipped: tuple[tuple[Path, str], ...]
    prompter: Prompter
    seed: int
    num_timesteps: int
    repeats: int = 1

    @cached_property
    def _samples(self) -> np.ndarray:
        """The item of each sample of an epoch before it is shuffled: all once, then those that come again, and so on."""
        repeats = np.array([item.repeats for item in self.items])
        once = np.concatenate([np.flatnonzero(repeats > number) for number in range(repeats.max())])
        return np.tile(once, self.repeats)

    @property
    def epoch_length(self) -> int:
        """Samples in an epoch."""
        return len(self._samples)

    @property
    def subsets(self) -> tuple[Subset, ...]:
        """Where its images come from."""
        return tuple(dict.fromkeys(item.subset for item in self.items))

    @property
    def images_of_the_thing(self) -> tuple[Item, ...]:
        """All but regularisation images."""
        return tuple(item for item in self.items if not item.subset.is_reg)

    def in_words(self) -> str:
        """How many images there are, how many of them have a caption, and in files of which ending, and how many a mask."""
        endings = dict.fromkeys(item.caption_file.suffix.lower() for item in self.items if item.caption_file is not None)
        captioned = sum(item.caption is not None for item in self.items)
        captions = f"{captioned} with a caption" + (f" ({', '.join(endings)})" if endings else "")
        return f"{counted(len(self.items), 'image')}, {captions}, {sum(item.has_mask for item in self.items)} with a mask"

    @cached_property
    def fingerprint(self) -> str:
        """Changes when the images, their captions or their order do, or how the folders of a dataset file are fed."""
        digest = hashlib.sha256()
        for item in self.items:
            digest.update(f"{item.path.name}\0{item.caption or ''}\0{tuple(item.latents.shape)}".encode())
            digest.update(item.latents.float().cpu().numpy().tobytes())
            if item.masked is not None:
                digest.update(item.masked.float().cpu().numpy().tobytes())
            fed = (
                item.repeats,
                float(item.subset.weight),
                item.subset.is_reg,
                item.has_mask or item.subset.masks is not None,
            )
            if fed != (1, 1.0, False, False):  # else it is as it was before there were such things: runs go on
                digest.update(repr(fed).encode())
                digest.update(b"" if item.weight is None else item.weight.float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def order(self) -> Iterator[int]:
        """Items without end; every epoch is a permutation of all, each as often as it is repeated."""
        epoch = 0
        while True:
            order = np.random.default_rng((self.seed, epoch)).permutation(self.epoch_length)
            yield from self._samples[order].tolist()
            epoch += 1

    def batches(
        self,
        batch_size: int,
        start: int = 0,
        wanted: Callable[[int], bool] = lambda number: True,
        streams: Sequence[int] = (0,),
    ) -> Iterator[Batch]:
        """Batches of images of one size, none incomplete: images wait, over epochs if need be, for a full batch.

        The first `start` batches are left out; of those that follow, by their numbers from 0, only the wanted ones are made.
        Of several streams each batch has the same images once for each, with what is random about them in that stream.
        """
        waiting: dict[torch.Size, list[tuple[int, int]]] = defaultdict(list)
        made = 0
        for number, index in enumerate(self.order()):
            group = waiting[self.items[index].latents.shape]
            group.append((number, index))
            if len(group) == batch_size:
                if made >= start and wanted(made - start):
                    yield self.batch(group, streams)
                made += 1
                group.clear()

    def batch(self, samples: Sequence[tuple[int, int]], streams: Sequence[int] = (0,)) -> Batch:
        """The batch of these samples, each its number in the run and the index of its item; one stream after another."""
        prompts, negative_prompts, timesteps, latents, noise = [], [], [], [], []
        for stream, (number, index) in product(streams, samples):
            item, rng = self.items[index], sample_rng(self.seed, number, stream)
            said, unsaid = self._prompts(item, rng)
            prompts.append(said)
            negative_prompts.append(unsaid)
            timesteps.append(int(rng.integers(self.num_timesteps)))
            noise.append(_normal(item.latents, rng))
            drawn = (
                item.latents
                if item.std is None
                else item.latents + item.std * _sent(_normal(item.latents, rng), item.std.device)
            )
            latents.append(drawn)
        device = latents[0].device
        items = [self.items[index] for _ in streams for _, index in samples]
        weights = [item.weight for item in items]
        weight = None
        if any(each is not None for each in weights):
            ones = torch.ones_like(latents[0][:1])
            weight = torch.stack([ones if each is None else each for each in weights])
        return Batch(
            torch.stack(latents),
            _sent(torch.stack(noise), device),
            _sent(torch.tensor(timesteps), device),
            tuple(prompts),
            weight,
            image_conditioning(items),
            tuple(negative_prompts) if self.prompter.negative else (),
            None if items[0].pixels is None else torch.stack([item.pixels for item in items]),
            None if all(item.share == 1 for item in items) else _sent(torch.tensor([item.share for item in items]), device),
        )

    def _prompts(self, item: Item, rng: np.random.Generator) -> tuple[str, str]:
        if item.subset.is_reg:
            said = self.prompter.alone(item.caption)
            return said, self.prompter.alone(item.caption, negative=True) if self.prompter.negative else ""
        return self.prompter.pair(item.caption, rng)


def image_conditioning(items: Sequence[Item]) -> ImageConditioning:
    """What a batch of these is told of them besides text."""
    masked = [item.masked for item in items]
    sizes = _sent(torch.tensor([item.sizes for item in items], dtype=torch.float32), items[0].latents.device)
    return ImageConditioning(sizes, None if masked[0] is None else torch.stack(masked))


def _sent(numbers: Tensor, device: torch.device) -> Tensor:
    """On the device. To a GPU from memory that stays in place: else the CPU would wait until the GPU has done all before."""
    return numbers.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers.to(device)


def _normal(like: Tensor, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.standard_normal(tuple(like.shape), np.float32))


def load_dataset(
    images: Path | Sequence[Subset],
    model: DiffusionModel,
    frame: Frame,
    prompter: Prompter,
    *,
    seed: int,
    repeats: int = 1,
    latent_sampling: str = "once",
    word_regex: str = "",
    join_string: str = " ",
    prior_loss_weight: float = 1.0,
    mask_outside: float = 0.0,
    normalize_masks: bool = True,
    keep_pixels: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    warn: Warn = log.warning,
) -> Dataset:
    """Read and encode every image of a folder, or of a dataset file, one at a time. DatasetError if none can be used."""
    subsets = read_subsets(images, warn) if isinstance(images, Path) else images
    items: list[Item] = []
    skipped: list[tuple[Path, str]] = []

    planned = plan(subsets, model, Captions(prompter, word_regex, join_string), warn)
    for number, each in enumerate(planned):
        path, subset = each.path, each.subset
        try:
            loaded = load_image(path, frame, each.mask)
            if each.mask is not None and not mask_outside and not loaded.counts.any():
                message = f"its mask {each.mask.name} marks nothing of what is left of it"
                raise DatasetError(message)  # noqa: TRY301 - as for a mask of another shape
        except Exception as error:  # a damaged file provokes anything
            skipped.append((path, str(error) or type(error).__name__))
            log.warning("Skipped: %s (%s)", path.name, skipped[-1][1])
            continue
        finally:
            progress(number + 1, len(planned))
        with torch.no_grad():
            mean, std = (part[0] for part in model.encode_images(loaded.pixels[None]))  # (C, H, W)
            masked = model.encode_masked(loaded.pixels[None], None if loaded.counts is None else loaded.counts[None])
        if latent_sampling == "once":
            mean = mean + std * _normal(mean, sample_rng(seed, _LATENTS_STREAM + len(items))).to(mean.device)
        how = {"normalize": normalize_masks, "is_alpha": each.mask is None}
        counts = None if loaded.counts is None else mask_weight(loaded.counts, mean, mask_outside, **how)
        share = subset.weight * (prior_loss_weight if subset.is_reg else 1)
        weight = _scaled(counts, mean, share)
        kept_std = std if latent_sampling == "random" else None
        masked = None if masked is None else masked[0]
        pixels = ((loaded.pixels + 1) * 127.5).round().to(torch.uint8) if keep_pixels else None
        item = Item(path, each.caption, mean, kept_std, weight, loaded.sizes, masked, subset, each.repeats)
        more = {"has_mask": each.mask is not None, "caption_file": each.caption_file}
        items.append(replace(item, pixels=pixels, share=float(share), **more))
    if all(item.subset.is_reg for item in items):
        reasons = "; ".join(f"{path.name}: {reason}" for path, reason in skipped[:5])
        where = ", ".join(str(subset.folder) for subset in subsets if not subset.is_reg)
        message = f"None of the {len(planned)} images in {where} can be used ({reasons}). Put readable images there."
        raise DatasetError(message)
    return Dataset(tuple(items), tuple(skipped), prompter, seed, len(model.alphas_cumprod), repeats)


def _scaled(weight: Tensor | None, latents: Tensor, scale: float) -> Tensor | None:
    """(1, H, W), or None if all counts the same and once."""
    if scale == 1:
        return weight
    return scale * (torch.ones_like(latents[:1]) if weight is None else weight)
