"""The dataset as the trainer sees it: latents in RAM, prompts, and batches in random order.

Everything random about a sample depends only on the seed and the sample's number. So gradient accumulation gives the same
result as a larger batch, previews change nothing, and a resumed run continues exactly. B batch size, C latent channels, H W
latent height and width.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ti_trainer.data.phrases import Phrase, with_phrase
from ti_trainer.data.prompts import Prompter
from ti_trainer.data.repeated import RepeatedSamples
from ti_trainer.data.subsets import Subset
from ti_trainer.functional.transfer import sent
from ti_trainer.model import ImageConditioning
from ti_trainer.wording import counted


@dataclass(frozen=True)
class Item:
    """One image: latents (C, H, W), their standard deviation if they are sampled at each use, and a loss weight (1, H, W).

    Conditioning of some models: `sizes` as in `Loaded`, and `masked` (1 + C, H, W) for inpainting. The image comes up
    `repeats` times in an epoch, times the repeats of the dataset. `pixels` (3, 8 H, 8 W) uint8 are kept for pixel losses.
    All tensors are on the CPU: the latents of a large dataset would take gigabytes of a GPU.
    `share` is the loss weight of the whole image, for losses without a weight per pixel; `weight` includes it.
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
    """The inputs of one forward pass: latents and noise (B, C, H, W), timesteps (B,), a loss weight (B, 1, H, W) or None.

    `negative_prompts` are those of guidance; none in plain Textual Inversion. `pixels` (B, 3, 8 H, 8 W) uint8, always on the
    CPU, are only there for pixel losses. `shares` (B,) are the loss weights of whole images, or None if all are 1.
    `phrases` are those that were added to prompts, None where there is none; empty if all are.
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
    phrases: tuple[Phrase | None, ...] = ()

    @property
    def prompts_without_phrases(self) -> tuple[str, ...]:
        """The prompts as captions and template make them."""
        phrases = self.phrases or (None,) * len(self.prompts)
        plain = (prompt if each is None else each.plain_prompt for prompt, each in zip(self.prompts, phrases, strict=True))
        return tuple(plain)

    def on(self, device: torch.device) -> Batch:
        """This batch, made on the CPU, on the device."""
        images = self.images
        return replace(
            self,
            latents=sent(self.latents, device),
            noise=sent(self.noise, device),
            timesteps=sent(self.timesteps, device),
            weight=None if self.weight is None else sent(self.weight, device),
            images=ImageConditioning(
                sent(images.sizes, device), None if images.masked is None else sent(images.masked, device)
            ),
            shares=None if self.shares is None else sent(self.shares, device),
        )


PHRASES_STREAM, REPEATED_STREAM = 1 << 32, 1 << 33  # beyond the streams of trials


def sample_rng(seed: int, number: int, stream: int = 0) -> np.random.Generator:
    """The random number generator of one sample; each stream is independent."""
    return np.random.Generator(np.random.Philox(key=seed, counter=(stream << 128) + (number << 64)))


@dataclass(frozen=True)
class Dataset:
    """The encoded images of all subsets; `skipped` are those that could not be used, with reasons.

    With `noise_instead`, every second sample has pure noise instead of an image's latents. Images `held_out` are not trained
    on; the validation loss is measured on them.
    """

    items: tuple[Item, ...]
    skipped: tuple[tuple[Path, str], ...]
    prompter: Prompter
    seed: int
    num_timesteps: int
    repeats: int = 1
    noise_instead: bool = False
    held_out: tuple[Item, ...] = ()

    @cached_property
    def _samples(self) -> np.ndarray:
        """The item of each sample of an epoch, before shuffling: first each once, then second repeats, and so on."""
        repeats = np.array([item.repeats for item in self.items])
        once = np.concatenate([np.flatnonzero(repeats > number) for number in range(repeats.max())])
        return np.tile(once, self.repeats)

    @property
    def epoch_length(self) -> int:
        """Samples in an epoch."""
        return len(self._samples)

    @property
    def subsets(self) -> tuple[Subset, ...]:
        """The subsets that the images come from."""
        return tuple(dict.fromkeys(item.subset for item in self.items))

    @property
    def images_of_the_thing(self) -> tuple[Item, ...]:
        """The images without regularisation images."""
        return tuple(item for item in self.items if not item.subset.is_reg)

    @property
    def validation_images(self) -> tuple[Item, ...]:
        """The images that the validation loss is measured on: those held out, or else those of the thing."""
        return self.held_out or self.images_of_the_thing

    def in_words(self) -> str:
        """The number of images, and of those with a caption and with a mask; a sentence without its full stop."""
        endings = dict.fromkeys(item.caption_file.suffix.lower() for item in self.items if item.caption_file is not None)
        captioned = sum(item.caption is not None for item in self.items)
        captions = f"{captioned} with a caption" + (f" ({', '.join(endings)})" if endings else "")
        return f"{counted(len(self.items), 'image')}, {captions}, {sum(item.has_mask for item in self.items)} with a mask"

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the images, captions and their order, and of the repeats, weights and masks of subsets."""
        digest = hashlib.sha256()
        for item in (*self.items, *self.held_out):
            about = f"{item.path.name}\0{item.caption or ''}\0{tuple(item.latents.shape)}"
            digest.update(about.encode("utf-8", "surrogateescape"))  # names of files need not be UTF-8
            digest.update(item.latents.float().cpu().numpy().tobytes())
            if item.masked is not None:
                digest.update(item.masked.float().cpu().numpy().tobytes())
            sampling = (
                item.repeats,
                float(item.subset.weight),
                item.subset.is_reg,
                item.has_mask or item.subset.masks is not None,
            )
            if sampling != (1, 1.0, False, False):  # defaults are left out: the digests of earlier runs stay valid
                digest.update(repr(sampling).encode())
                digest.update(b"" if item.weight is None else item.weight.float().cpu().numpy().tobytes())
        if self.held_out:
            digest.update(f"held out: {len(self.held_out)}".encode())
        return digest.hexdigest()[:16]

    def order(self) -> Iterator[int]:
        """Indices of items, without end; every epoch is a permutation of all samples."""
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
        """Full batches of images of one size: an image waits, into the next epoch if necessary, until its batch is full.

        The first `start` batches are skipped. Of those that follow, numbered from 0, only the wanted ones are yielded. With
        several streams a batch has the same images once for each stream, with that stream's random numbers.
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
        """Make a batch of samples, each given by its number in the run and the index of its item; streams in order.

        If the prompter has `both`, each sample is there twice, with the same noise and timestep.
        """
        prompts, negative_prompts, timesteps, latents, noise = [], [], [], [], []
        items: list[Item] = []
        phrases: list[Phrase | None] = []
        sides = range(len(self.prompter.names))
        for stream, (number, index), side in product(streams, samples, sides):
            item, rng = self.items[index], sample_rng(self.seed, number, stream)
            repeated = self._repeated(index, number, stream)
            if repeated is not None:
                rng = sample_rng(self.seed, repeated, REPEATED_STREAM + stream)
            pair = self._prompts(item, rng)
            prompt, timestep = pair[side], int(rng.integers(self.num_timesteps))
            if repeated is None:
                phrases.append(None)
            else:
                phrases.append(Phrase(prompt, stream, repeated))
                seed = (self.seed, stream)
                prompt = with_phrase(prompt, self.prompter.name, repeated, seed)
                timestep = self.repeated_samples.timestep_of(repeated, timestep, self.num_timesteps, seed)
            prompts.append(prompt)
            negative_prompts.append(pair[1])
            items.append(item)
            timesteps.append(timestep)
            noise.append(normal_like(item.latents, rng))
            drawn = item.latents if item.std is None else item.latents + item.std * normal_like(item.latents, rng)
            latents.append(normal_like(item.latents, rng) if self.noise_instead and number % 2 else drawn)
        weights = [item.weight for item in items]
        weight = None
        if any(each is not None for each in weights):
            ones = torch.ones_like(latents[0][:1])
            weight = torch.stack([ones if each is None else each for each in weights])
        return Batch(
            torch.stack(latents),
            torch.stack(noise),
            torch.tensor(timesteps),
            tuple(prompts),
            weight,
            image_conditioning(items),
            tuple(negative_prompts) if self.prompter.negative and not self.prompter.both else (),
            _stacked([item.pixels for item in items]),
            None if all(item.share == 1 for item in items) else torch.tensor([item.share for item in items]),
            tuple(phrases) if any(each is not None for each in phrases) else (),
        )

    def _repeated(self, index: int, number: int, stream: int) -> int | None:
        """The number of the sample with a phrase that takes the place of one of this item; None if none does."""
        rng = sample_rng(self.seed, number, PHRASES_STREAM + stream)  # the sample's own draws stay as they are
        if self.items[index].subset.is_reg or rng.random() >= self.prompter.phrase_share:
            return None
        return self.repeated_samples.number_for(number, self._places[index], rng)

    @cached_property
    def repeated_samples(self) -> RepeatedSamples:
        """The samples with phrases."""
        return RepeatedSamples(len(self._places))

    @cached_property
    def _places(self) -> dict[int, int]:
        """The places of items among the images of the thing, by index."""
        those = (index for index, item in enumerate(self.items) if not item.subset.is_reg)
        return {index: place for place, index in enumerate(those)}

    def _prompts(self, item: Item, rng: np.random.Generator) -> tuple[str, str]:
        if item.subset.is_reg:
            negative = self.prompter.alone(item.caption, negative=True) if self.prompter.negative else ""
            return self.prompter.alone(item.caption), negative
        return self.prompter.pair(item.caption, rng)


def image_conditioning(items: Sequence[Item]) -> ImageConditioning:
    """The conditioning of a batch of these items, besides prompts."""
    sizes = torch.tensor([item.sizes for item in items], dtype=torch.float32)
    return ImageConditioning(sizes, _stacked([item.masked for item in items]))


def _stacked(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """Tensors of one shape as one; None if they are None."""
    present = [each for each in tensors if each is not None]
    return torch.stack(present) if present else None


def normal_like(like: Tensor, rng: np.random.Generator) -> Tensor:
    """Standard normal noise of the shape of a tensor, float32 on the CPU."""
    return torch.from_numpy(rng.standard_normal(tuple(like.shape), np.float32))
