"""Hold images of a dataset out of training, to measure the validation loss on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace

from ti_trainer.data.dataset import Dataset, Item
from ti_trainer.wording import counted

FEWEST = 8  # images of the thing; of fewer, none is held out
ONE_IN, MOST = 8, 10


def choose(items: Sequence[Item]) -> list[str]:
    """The names of the images to hold out: one in ONE_IN, at most MOST, evenly spread, never the only one of its folder."""
    of_thing = [item for item in items if not item.subset.is_reg]
    if len(of_thing) < FEWEST:
        return []
    folders, names = Counter(item.subset for item in of_thing), Counter(map(name_of, of_thing))
    usable = [item for item in of_thing if folders[item.subset] > 1 and names[name_of(item)] == 1]
    count = min(len(of_thing) // ONE_IN, MOST, len(usable))
    return [name_of(usable[(2 * number + 1) * len(usable) // (2 * count)]) for number in range(count)]


def hold_out(dataset: Dataset, names: Collection[str]) -> Dataset:
    """The dataset without these images, which become its `held_out`. Names of images that it does not have are ignored."""
    held_out = tuple(item for item in dataset.items if name_of(item) in names and not item.subset.is_reg)
    remaining = tuple(item for item in dataset.items if item not in held_out)
    if not held_out or all(item.subset.is_reg for item in remaining):
        return dataset
    return replace(dataset, items=remaining, held_out=held_out)


def name_of(item: Item) -> str:
    """An image's name with that of its folder, which also identifies it where the dataset has been moved."""
    return f"{item.path.parent.name}/{item.path.name}"


def in_words(dataset: Dataset) -> str:
    """How many images are held out, as a sentence; "" if none is."""
    held_out = len(dataset.held_out)
    if not held_out:
        return ""
    total = counted(len(dataset.images_of_the_thing) + held_out, "image")
    return f"{held_out} of {total} {'is' if held_out == 1 else 'are'} held out for validation."
