"""How far the weights of a slider move the predictions between its two prompts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from ti_trainer.data.dataset import Dataset
from ti_trainer.training.slider import WEIGHTS, about_slider, at_weight, slider_positions
from ti_trainer.training.teacher import Teacher

if TYPE_CHECKING:
    from ti_trainer.hosts.diffusers.model import DiffusersModel


def test_a_weight_of_0_is_a_prompt_without_the_slider() -> None:
    teacher = Teacher("x-word", "red", "blue")
    assert [at_weight("a star, [name]", teacher, each) for each in (-2, 0, 1)] == [
        "a star, (x-word:-2)",
        "a star",
        "a star, (x-word:1)",
    ]


def test_the_prompt_is_at_1_and_its_opposite_at_minus_1(
    embedded_model: DiffusersModel, dataset: Callable[..., Dataset]
) -> None:
    items = dataset((16, 16), model=embedded_model).items[:1]
    red = {"x-word": embedded_model.token_embeddings("red")}
    with embedded_model.training():
        first, second = (
            slider_positions(embedded_model, items, ["a [name] star"], red, Teacher("x-word", *prompts))
            for prompts in (("red", "blue"), ("blue", "red"))
        )
    assert tuple(first) == WEIGHTS
    assert first[1] == pytest.approx(1, abs=1e-3)
    assert second[1] == pytest.approx(-1, abs=1e-3)
    assert first[-1] == pytest.approx(-second[-1], abs=1e-3)
    assert first[-1] < first[1]


def test_both_sides_are_told_and_a_weak_one_is_pointed_out() -> None:
    works = {-2.0: -0.9, -1.0: -0.62, 0.0: 0.1, 1.0: 0.7, 2.0: 1.6}
    assert about_slider(works, "red", "blue") == [
        "From the middle between the two prompts, weight 1 reaches 70% of the way to 'red' and weight -1 reaches 62% of the "
        "way to 'blue', on noise that is not trained on."
    ]
    one_sided = {-2.0: -0.46, -1.0: 0.05, 0.0: 0.34, 1.0: 0.78, 2.0: 0.6}
    assert about_slider(one_sided, "big", "small") == [
        "From the middle between the two prompts, weight 1 reaches 78% of the way to 'big' and weight -1 reaches 0% of the "
        "way to 'small', on noise that is not trained on.",
        "Weight -1 hardly moves images towards 'small': compare the images.",
        "The effect rises with the weight from -2 to 1 only.",
    ]
    none = dict(zip(WEIGHTS, (0.4, 0.3, 0.2, 0.1, 0.0), strict=True))
    assert about_slider(none, "a", "b")[-1] == "The effect does not rise with the weight."
