"""Which images are held out for validation, and that nothing else about a dataset changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import pytest

from ti_trainer.data.dataset import Dataset
from ti_trainer.data.held_out import choose, hold_out, in_words, name_of
from ti_trainer.data.subsets import Subset


@pytest.mark.parametrize(("count", "held_out"), [(1, 0), (7, 0), (8, 1), (15, 1), (16, 2), (40, 5), (200, 10)])
def test_one_in_eight_is_held_out_but_none_of_a_few(dataset: Callable[..., Dataset], count: int, held_out: int) -> None:
    (item,) = dataset((16, 16)).items
    items = [replace(item, path=Path("folder") / f"{number}.png") for number in range(count)]
    names = choose(items)
    assert len(set(names)) == held_out
    places = [number for number, each in enumerate(items) if name_of(each) in names]
    assert all(after - before >= 8 for before, after in pairwise(places)), "evenly spread"


def test_neither_regularization_images_nor_the_only_image_of_a_folder_is_held_out(dataset: Callable[..., Dataset]) -> None:
    (item,) = dataset((16, 16)).items
    class_images = [
        replace(item, path=Path("reg") / f"{number}.png", subset=Subset(Path("reg"), is_reg=True)) for number in range(30)
    ]
    alone = [replace(item, path=Path(f"{number}") / "a.png", subset=Subset(Path(f"{number}"))) for number in range(12)]
    several = [replace(item, path=Path("many") / f"{number}.png", subset=Subset(Path("many"))) for number in range(4)]
    assert choose(class_images) == []
    assert choose([*class_images, *alone]) == []
    (one, two) = choose([*class_images, *alone, *several])
    assert one.startswith("many/")
    assert two.startswith("many/")


def test_images_that_are_held_out_are_never_trained_on(dataset: Callable[..., Dataset]) -> None:
    whole = dataset(*((16, 16),) * 9)
    part = hold_out(whole, choose(whole.items))
    (item,) = part.held_out
    assert len(part.items) == part.epoch_length == 8
    assert part.validation_images == (item,)
    assert whole.validation_images == whole.items
    drawn = {batch.latents.numpy().tobytes() for batch in islice(part.batches(1), 16)}
    assert len(drawn) == 8
    assert item.latents.numpy()[None].tobytes() not in drawn
    assert in_words(part) == "1 of 9 images is held out for validation."
    assert in_words(whole) == ""


def test_the_fingerprint_knows_them(dataset: Callable[..., Dataset]) -> None:
    whole = dataset(*((16, 16),) * 9)
    names = [name_of(item) for item in whole.items]
    found = {hold_out(whole, each).fingerprint for each in ((), names[:1], names[1:2], names[-1:], names[:2])}
    assert len(found) == 5
    assert hold_out(whole, ["elsewhere/0.png"]).fingerprint == whole.fingerprint
    assert hold_out(whole, names) is whole, "something has to be trained on"
