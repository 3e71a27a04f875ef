"""A look at a dataset before a run, as the page shows it: what `preflight` finds, and small versions of the first images.

Encodes nothing, writes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ti_trainer.config.training import TrainConfig
from ti_trainer.data.image_files import upright
from ti_trainer.data.open_image import on_white
from ti_trainer.data.plan import Planned
from ti_trainer.data.preflight import preflight
from ti_trainer.data.preflight_warnings import about_unreadable
from ti_trainer.data.prompts import Prompter
from ti_trainer.data.subsets import Subset, read_subsets
from ti_trainer.model import DiffusionModel, Vectors
from ti_trainer.prompts import TokenizedPrompt

THUMBNAILS, THUMBNAIL_PX = 24, 192


@dataclass(frozen=True)
class Look:
    """What was found. `thumbnails` are of the first images, with their captions; `prompts` as they will be fed.

    `sizes` and, where there are some, `buckets` are (width, height) with their numbers of images; `folders` of how many.
    """

    count: int
    folders: int
    sizes: tuple[tuple[tuple[int, int], int], ...]
    buckets: tuple[tuple[tuple[int, int], int], ...]
    captioned: int
    masked: int
    unreadable: tuple[tuple[str, str], ...]
    thumbnails: tuple[tuple[Image.Image, str], ...]
    prompts: tuple[tuple[str, TokenizedPrompt], ...]
    warnings: tuple[str, ...]


def look(
    images: Path | Sequence[Subset],
    template: Sequence[str],
    config: TrainConfig,
    model: DiffusionModel,
    name: str,
    vectors: Vectors,
    plain: Sequence[str] = (),
) -> Look:
    """Look at a folder, or a dataset file, as such a run would; DatasetError if there is nothing to look at.

    `plain` are lines for images without a caption.
    """
    said: list[str] = []
    subsets = read_subsets(images, said.append) if isinstance(images, Path) else images
    prompter = Prompter(name, template, config.shuffle_tags, config.tag_dropout, plain=plain)
    thumbnails: list[tuple[Image.Image, str]] = []

    def keep_first(planned: Planned, opened: Image.Image) -> None:
        if len(thumbnails) < THUMBNAILS:
            thumbnails.append((_small(opened), planned.caption or ""))

    found = preflight(subsets, prompter, config, model, vectors, keep_first)
    frame, sizes = found.frame, Counter(each.size for each in found.seen)
    buckets = Counter(frame.size_for(each.size) for each in found.seen) if frame.buckets else Counter()
    return Look(
        len(found.planned),
        len(subsets),
        tuple(sizes.most_common()),
        tuple(buckets.most_common()),
        found.captioned,
        found.masked,
        found.unreadable,
        tuple(thumbnails),
        found.prompts,
        (*said, *about_unreadable(found.unreadable), *found.warnings),
    )


def _small(opened: Image.Image) -> Image.Image:
    small = upright(opened, (2 * THUMBNAIL_PX, 2 * THUMBNAIL_PX))
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    return on_white(small)
