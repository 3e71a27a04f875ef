"""Read and encode the images of a dataset."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ti_trainer.config.training import TrainConfig
from ti_trainer.data.dataset import Dataset, Item, normal_like, sample_rng
from ti_trainer.data.images import Frame, Loaded, load_image
from ti_trainer.data.plan import Captions, Planned, Warn, plan
from ti_trainer.data.prompts import Prompter
from ti_trainer.data.subsets import Subset, read_subsets
from ti_trainer.errors import DatasetError
from ti_trainer.functional.mask_weight import mask_weight
from ti_trainer.model import DiffusionModel

log = logging.getLogger(__name__)
_LATENTS_STREAM = 2**63  # sample numbers are lower


@dataclass(frozen=True)
class DatasetOptions:
    """The options of a run that its dataset depends on; TrainConfig describes each.

    `keep_pixels`: keep the images in CPU memory as well, for pixel losses.
    """

    seed: int = 0
    repeats: int = 1
    latent_sampling: str = "once"
    word_regex: str = ""
    join_string: str = " "
    prior_loss_weight: float = 1.0
    mask_outside: float = 0.0
    normalize_masks: bool = True
    keep_pixels: bool = False

    @classmethod
    def of(cls, config: TrainConfig) -> DatasetOptions:
        """Those of a run."""
        return cls(
            seed=config.seed,
            repeats=config.repeats,
            latent_sampling=config.latent_sampling,
            word_regex=config.filename_word_regex,
            join_string=config.filename_join_string,
            prior_loss_weight=config.prior_loss_weight,
            mask_outside=config.mask_outside,
            normalize_masks=config.normalize_masks,
            keep_pixels=config.reconstruction_weight > 0,
        )


def load_dataset(
    images: Path | Sequence[Subset],
    model: DiffusionModel,
    frame: Frame,
    prompter: Prompter,
    options: DatasetOptions | None = None,
    *,
    most: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    warn: Warn = log.warning,
) -> Dataset:
    """Read and encode the images of a folder, a dataset file, or subsets, one at a time: at most `most`, evenly spread.

    An image that cannot be used is skipped and logged; DatasetError if none can be used.
    """
    options = options or DatasetOptions()
    subsets = read_subsets(images, warn) if isinstance(images, Path) else images
    items: list[Item] = []
    skipped: list[tuple[Path, str]] = []
    planned = plan(subsets, model, Captions(prompter, options.word_regex, options.join_string), warn)
    planned = planned[:: -(-len(planned) // most)] if most else planned
    for number, each in enumerate(planned, start=1):
        try:
            loaded = load_image(each.path, frame, each.mask)
            _check_mask(each, loaded, options)
        except Exception as error:  # a damaged file can raise anything
            skipped.append((each.path, str(error) or type(error).__name__))
            log.warning("Skipped: %s (%s)", each.path.name, skipped[-1][1])
        else:
            items.append(_encoded(each, loaded, model, options, len(items)))
        progress(number, len(planned))
    if all(item.subset.is_reg for item in items):
        reasons = "; ".join(f"{path.name}: {reason}" for path, reason in skipped[:5])
        where = ", ".join(str(subset.folder) for subset in subsets if not subset.is_reg)
        message = f"None of the {len(planned)} images in {where} can be used ({reasons}). Put readable images there."
        raise DatasetError(message)
    return Dataset(tuple(items), tuple(skipped), prompter, options.seed, len(model.alphas_cumprod), options.repeats)


def _check_mask(planned: Planned, loaded: Loaded, options: DatasetOptions) -> None:
    if planned.mask is not None and loaded.counts is not None and not options.mask_outside and not loaded.counts.any():
        message = f"its mask {planned.mask.name} marks nothing in the part of the image that is used"
        raise DatasetError(message)


def _encoded(planned: Planned, loaded: Loaded, model: DiffusionModel, options: DatasetOptions, number: int) -> Item:
    """Encode an image; `number` counts those before it, and chooses the noise if its latents are sampled once."""
    with torch.no_grad():
        mean, std = (part[0].cpu() for part in model.encode_images(loaded.pixels[None]))  # (C, H, W)
        masked = model.encode_masked(loaded.pixels[None], None if loaded.counts is None else loaded.counts[None])
    if options.latent_sampling == "once":
        mean = mean + std * normal_like(mean, sample_rng(options.seed, _LATENTS_STREAM + number))
    weight = None
    if loaded.counts is not None:
        is_alpha = planned.mask is None
        weight = mask_weight(loaded.counts, mean, options.mask_outside, normalize=options.normalize_masks, is_alpha=is_alpha)
    share = planned.subset.weight * (options.prior_loss_weight if planned.subset.is_reg else 1)
    return Item(
        path=planned.path,
        caption=planned.caption,
        latents=mean,
        std=std if options.latent_sampling == "random" else None,
        weight=_scaled(weight, mean, share),
        sizes=loaded.sizes,
        masked=None if masked is None else masked[0].cpu(),
        subset=planned.subset,
        repeats=planned.repeats,
        has_mask=planned.mask is not None,
        pixels=((loaded.pixels + 1) * 127.5).round().to(torch.uint8) if options.keep_pixels else None,
        share=float(share),
        caption_file=planned.caption_file,
    )


def _scaled(weight: Tensor | None, latents: Tensor, scale: float) -> Tensor | None:
    """The weight (1, H, W) times `scale`; None if it is 1 everywhere."""
    if scale == 1:
        return weight
    return scale * (torch.ones_like(latents[:1]) if weight is None else weight)
