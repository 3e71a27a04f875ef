"""Suggest an initial text for an embedding: rank candidates by the validation loss of the images, without training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ti_trainer.data.dataset import Item
from ti_trainer.data.prompts import NAME
from ti_trainer.data.subsets import Subset
from ti_trainer.model import DiffusionModel
from ti_trainer.prompts import content_words, escaped
from ti_trainer.runs.datasets import items_to_measure
from ti_trainer.training.evaluation import described, validation_loss
from ti_trainer.wording import counted

COMMON = (
    "person, man, woman, girl, boy, face, cat, dog, horse, bird, animal, monster, robot, doll, toy, car, house, room, city, "
    "landscape, tree, flower, food, clothes, logo, painting, drawing, sketch, illustration, anime, comic, sculpture, pattern"
)
FROM_CAPTIONS = 20  # words, the most frequent
IMAGES = 8
AT_ONCE = 2  # samples: as many as generating an image computes together
FINALISTS = 8  # that are measured again


@dataclass(frozen=True)
class Ranking:
    """The best texts with their validation losses, the best first; the loss without any; the numbers of images and texts."""

    losses: tuple[tuple[str, float], ...]
    without: float
    num_images: int
    num_texts: int

    @property
    def best(self) -> str | None:
        """The best text; None if none is better than no text."""
        text, loss = self.losses[0]
        return text if loss < self.without else None

    @property
    def summary(self) -> str:
        """What was measured."""
        return f"The best of {counted(self.num_texts, 'text')} on {counted(self.num_images, 'image')}."

    @property
    def advice(self) -> str:
        """What to make of it, as a sentence."""
        if self.best is None:
            return (
                "None describes the images better than no text: use a word or two that you would describe the subject with."
            )
        return f"Suggested initial text: {self.best}. If a text close to it suits the subject better, use that."

    def rows(self) -> Iterator[tuple[str, str]]:
        """Each text, and how much lower its loss is than without any."""
        for text, loss in self.losses:
            gain = 1 - loss / self.without
            yield text, f"{abs(gain):.1%} {'lower' if gain >= 0 else 'higher'}"


def rank(
    model: DiffusionModel,
    subsets: Sequence[Subset],
    given: Sequence[str] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Ranking:
    """Rank the given texts, words of the captions and common words, on up to IMAGES images.

    All are measured on few samples, and the best again on more. The caller holds the host's lock. DatasetError if there is
    no usable image.
    """
    items = items_to_measure(model, subsets, IMAGES)
    texts = candidates([item.caption or "" for item in items], given)
    total = len(texts) + min(FINALISTS, len(texts)) + 1

    def losses(some: Sequence[str], done: int, *, spread: bool) -> dict[str, float]:
        found = {}
        for number, text in enumerate(some, start=1):
            found[text] = _loss(model, items, text, spread=spread)
            progress(done + number, total)
        return found

    with model.training():
        first = losses(texts, 0, spread=True)
        second = losses(["", *sorted(texts, key=first.__getitem__)[:FINALISTS]], len(texts), spread=False)
    without = second.pop("")
    return Ranking(tuple(sorted(second.items(), key=lambda each: each[1])), without, len(items), len(texts))


def candidates(captions: Sequence[str], given: Sequence[str] = ()) -> list[str]:
    """The given texts, the most frequent words of the captions, and common words, each once."""
    words = Counter(word.lower() for each in captions if each.strip() for word in set(content_words(each).split()))
    frequent = [word for word, _ in words.most_common(FROM_CAPTIONS) if word.isalpha()]
    return list(dict.fromkeys(filter(None, map(str.strip, (*given, *frequent, *COMMON.split(","))))))


def _loss(model: DiffusionModel, items: Sequence[Item], text: str, *, spread: bool) -> float:
    """The validation loss of a text with each image's caption, as in training; `spread` as for `fixed_batches`."""
    prompt = f"a photo of {escaped(text)}" if text else "a photo"
    prompts = [described(prompt, (item.caption or "").replace(NAME, escaped(text))) for item in items]
    return validation_loss(model, items, prompts, {}, at_once=AT_ONCE, spread=spread)
