"""Measure images with a CLIP or DINO: similarity to the training images and, with a CLIP, to the prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image

from ti_trainer.errors import ConfigError
from ti_trainer.host import Host
from ti_trainer.runs.datasets import check_folder, subsets_of
from ti_trainer.workbench.similarity import Similarity, images_of

MOST_REFERENCES = 64  # training images that are compared with
BATCH = 8
Key = TypeVar("Key")


@dataclass(frozen=True)
class Score:
    """Cosines of an image; None: not measured."""

    images: float | None = None
    prompt: float | None = None

    @classmethod
    def mean(cls, scores: Sequence[Score]) -> Score | None:
        """The mean of several; None if there are none."""
        if not scores:
            return None
        return cls(_mean([each.images for each in scores]), _mean([each.prompt for each in scores]))

    def lines(self) -> list[str]:
        """What was measured, for people."""
        named = (("to the images", self.images), ("to the prompt", self.prompt))
        return [f"similarity {what} {value:.3f}" for what, value in named if value is not None]

    def to_dict(self) -> dict[str, float]:
        """For comparison.json."""
        values = {"to_images": self.images, "to_prompt": self.prompt}
        return {name: round(value, 5) for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Scoring:
    """A folder of a CLIP or DINO, and the training images, if they are to be compared with.

    It computes on the CPU, so that the model's memory is left alone.
    """

    folder: Path
    images: Path | None = None

    def check(self, host: Host) -> None:
        """Raise ConfigError for folders that the host does not allow, or that do not exist."""
        host.check_folder(self.folder)
        if not self.folder.is_dir():
            message = f"Similarity: found {self.folder}, expected the folder of a CLIP or a DINO of transformers."
            raise ConfigError(message, "similarity")
        if self.images is not None:
            check_folder(host, self.images)
            if not self.images.exists():
                message = f"Training images: found {self.images}, which does not exist; expected a folder of images."
                raise ConfigError(message, "images")

    def load(self) -> Similarity:
        """The network; ConfigError if it cannot be used, or if nothing can be compared with."""
        similarity = Similarity.load(self.folder, torch.device("cpu"))
        if similarity.tokenizer is None and self.images is None:
            message = "Similarity: this network has no text encoder, so it needs the training images to compare with."
            raise ConfigError(message, "images")
        return similarity

    def measure(
        self,
        similarity: Similarity,
        host: Host,
        files: Mapping[Key, Path],
        texts: Mapping[Key, str],
        note: Callable[[str], None],
    ) -> Iterator[tuple[Key, Score]]:
        """The score of each file; `texts` are what they are to show."""
        wanted, by_text = None, dict[str, torch.Tensor]()
        if self.images is not None:
            found = list(_embedded(similarity, images_of(subsets_of(host, self.images), MOST_REFERENCES)))
            if len(found) == MOST_REFERENCES:
                note(f"The similarity is that to {MOST_REFERENCES} of the training images, evenly spread.")
            wanted = torch.stack(found)  # (number of images, d)
        if similarity.tokenizer is not None:
            by_text = {text: similarity.of_texts([text])[0] for text in dict.fromkeys(texts.values())}
        for key, row in zip(files, _embedded(similarity, map(_opened, files.values())), strict=True):
            text = by_text.get(texts[key])
            to_images = None if wanted is None else float((wanted @ row).mean())
            yield key, Score(to_images, None if text is None else float(text @ row))


def _embedded(similarity: Similarity, images: Iterator[Image.Image]) -> Iterator[torch.Tensor]:
    """(d,) for each image, computed in batches."""
    batch: list[Image.Image] = []
    for image in images:
        batch.append(image)
        if len(batch) == BATCH:
            yield from similarity.of_images(batch)
            batch = []
    if batch:
        yield from similarity.of_images(batch)


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _mean(values: Sequence[float | None]) -> float | None:
    known = [each for each in values if each is not None]
    return sum(known) / len(known) if known else None
