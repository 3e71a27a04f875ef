"""What is read from drawings of the benchmark's prompts is what they ask for, and a wrong drawing is noticed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ti_trainer.benchmark.quality_prompts import PLACES, THINGS, WORD, questions
from ti_trainer.benchmark.quality_reading import BACKGROUNDS, read
from ti_trainer.tiny_model.making.scenes import COLOURS, Thing, draw_array


@pytest.mark.parametrize("number", range(len(THINGS)))
def test_drawings_answer_every_question(number: int) -> None:
    asked = questions(number)
    assert {each.kind for each in asked} == {"place", "colour", "texture"}
    for each in asked:
        reading = read(draw_array(each.scene))
        assert all(each.answers(reading).values()), (each.prompt, reading)
        assert reading.shape == THINGS[number].shape
        if each.kind == "place":
            assert reading.texture == THINGS[number].texture


def test_a_drawing_of_something_else_does_not() -> None:
    place, colour, texture = (
        next(each for each in questions(0) if each.kind == kind) for kind in ("place", "colour", "texture")
    )
    blank = read(np.ones((64, 64, 3), np.float32))
    assert blank.background == "on a white background"
    assert blank.shape == blank.colour == "none"
    for each in (place, colour, texture):
        assert not all(each.answers(blank).values())
    other_size = read(draw_array(replace(place.scene, size=0.26 if place.expected.size == "big" else 0.41)))
    assert not place.answers(other_size)["size"]
    assert not place.answers(other_size)["place"]
    own_colours = read(draw_array(replace(colour.scene, thing=THINGS[0])))
    assert colour.answers(own_colours) == {"colour": False}
    plain = read(draw_array(replace(texture.scene, thing=replace(texture.scene.thing, texture="plain"))))
    assert texture.answers(plain) == {"texture": False}


def test_every_background_and_colour_is_read() -> None:
    for where, (top, bottom, kind) in BACKGROUNDS.items():
        scene = replace(questions(0)[0].scene, top=top, bottom=bottom, horizon=kind == "hard")
        assert read(draw_array(scene)).background == where
    for name, colour in COLOURS.items():
        white = "gray" if name == "white" else "white"
        scene = replace(questions(0)[0].scene, thing=Thing("circle", colour), top=COLOURS[white], bottom=COLOURS[white])
        assert read(draw_array(scene)).colour == name


def test_the_prompts_are_always_the_same_and_have_a_place_for_the_word() -> None:
    assert len(THINGS) >= 12
    for number in range(len(THINGS)):
        asked = questions(number)
        assert asked == questions(number)
        assert all(WORD in each.prompt for each in asked)
        assert sum(each.kind == "place" for each in asked) == PLACES
        assert len({each.prompt for each in asked}) > 0.8 * len(asked)
