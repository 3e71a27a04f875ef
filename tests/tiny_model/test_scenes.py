"""Images of shapes are as their captions say, at any size, and always the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ti_trainer.tiny_model.making import scenes
from ti_trainer.tiny_model.making.scenes import COLOURS, CONCEPTS, SHAPES, TEXTURES, Scene, Thing

Rgb = tuple[float, float, float]


def share(image: np.ndarray, colour: Rgb, tolerance: float = 0.12) -> float:
    """How much of the image is about of the colour: light falls on things and makes them a little brighter or darker."""
    return float((np.abs(image - np.asarray(colour)).max(-1) < tolerance).mean())


@pytest.mark.parametrize("size_px", [32, 64, 128])
@pytest.mark.parametrize("shape", list(SHAPES))
def test_every_shape_in_every_texture_is_drawn_in_its_colours(shape: str, size_px: int) -> None:
    first, second, ground = (0.1, 0.5, 0.9), (0.9, 0.7, 0.1), (0.5, 0.05, 0.3)
    seen = {}
    for texture in TEXTURES:
        image = scenes.draw_array(Scene(Thing(shape, first, texture, second), top=ground, bottom=ground), size_px)
        assert image.shape == (size_px, size_px, 3)
        assert image.dtype == np.float32
        assert np.isfinite(image).all()
        assert image.min() >= 0
        assert image.max() <= 1
        assert share(image, first) > 0.015  # of a moon's half that is not checked
        assert (share(image, second) > 0.01) == (texture != "plain")
        assert share(image, ground, 0.01) > 0.4
        np.testing.assert_allclose(image[0, 0], ground, atol=1e-6)
        seen[texture] = image.tobytes()
    assert len(set(seen.values())) == len(TEXTURES)


def test_shapes_differ_and_keep_their_form_at_every_size() -> None:
    masks = {}
    for shape in SHAPES:
        black, white = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        small, large = (
            scenes.draw_array(Scene(Thing(shape, black), top=white, bottom=white), px)[..., 0] for px in (32, 128)
        )
        shrunk = large.reshape(32, 4, 32, 4).mean((1, 3))
        assert np.abs(shrunk - small).mean() < 0.02, shape
        masks[shape] = small
    for one in SHAPES:
        for other in SHAPES:
            if one != other:
                assert np.abs(masks[one] - masks[other]).mean() > 0.01, (one, other)


def test_an_unknown_texture_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown texture 'furry'.*plain"):
        scenes.draw(Scene(Thing("star", COLOURS["red"], "furry")))


def test_the_same_rng_gives_the_same_image() -> None:
    nouns = {"blick": CONCEPTS[0]}
    for seed in range(20):
        first, caption = scenes.random_scene(np.random.default_rng(seed), nouns, 0.2)
        second, again = scenes.random_scene(np.random.default_rng(seed), nouns, 0.2)
        assert (first, caption) == (second, again)
        assert scenes.draw(first, 32).tobytes() == scenes.draw(second, 32).tobytes()
    assert len({scenes.random_scene(np.random.default_rng(seed))[1] for seed in range(50)}) > 40


def test_captions_say_what_is_drawn() -> None:
    rng = np.random.default_rng(0)
    told = dict.fromkeys(("shape", "colour", "texture", "size", "position"), 0)
    for _ in range(400):
        scene, caption = scenes.random_scene(rng)
        said = set(caption.split())
        thing, about = scene.thing, caption.split(" background")[0].split(" on a ")[0]
        told["shape"] += thing.shape in said
        assert (said & set(SHAPES)) <= {thing.shape}
        assert thing.shape in said or "thing" in said
        textures = said & set(TEXTURES)
        assert textures <= {thing.texture}
        told["texture"] += bool(textures)
        named = [word for word in about.split() if word in COLOURS]
        if named:
            assert np.abs(np.asarray(COLOURS[named[0]]) - thing.colour).max() <= 0.031
            assert len(named) == (1 if thing.texture == "plain" else 2)
            if len(named) == 2:
                assert np.abs(np.asarray(COLOURS[named[1]]) - thing.second_colour).max() <= 0.031
        told["colour"] += bool(named)
        for word, radius in scenes.SIZES.items():
            if word in said:
                assert scene.size == pytest.approx(radius, rel=0.05)
                told["size"] += 1
        for word, (x, y) in scenes.POSITIONS.items():
            if word and word in caption:
                assert scene.position == (pytest.approx(x, abs=0.021), pytest.approx(y, abs=0.021))
                told["position"] += 1
        for word, (top, _, kind) in scenes.SCENERY.items():
            if word in caption:
                assert np.abs(np.asarray(top) - scene.top).max() <= 0.031
                assert scene.horizon == (kind == "hard")
    assert min(told.values()) > 50, told


def test_things_can_be_seen_where_they_are_placed() -> None:
    rng = np.random.default_rng(1)
    for thing in CONCEPTS:
        for _ in range(5):
            scene, _, where = scenes.place(thing, rng)
            assert where
            assert share(scenes.draw_array(scene, 64), thing.colour) > 0.02
            assert np.abs(scene.position).max() + scene.size < 0.6


def test_random_things_have_two_colours_that_can_be_told_apart() -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        thing = scenes.random_thing(rng)
        assert thing.shape in SHAPES
        assert thing.texture in TEXTURES
        assert np.abs(np.asarray(thing.colour) - thing.second_colour).max() >= 0.35


def test_nouns_and_colours_without_a_name_come_up_as_often_as_they_should() -> None:
    rng, nouns = np.random.default_rng(3), {"blick": CONCEPTS[0], "florp": CONCEPTS[1]}
    drawn = [scenes.random_scene(rng, nouns, 0.5) for _ in range(300)]
    with_noun = [(scene, caption) for scene, caption in drawn if {"blick", "florp"} & set(caption.split())]
    assert 0.08 < len(with_noun) / 300 < 0.24
    for scene, caption in with_noun:
        (noun,) = {"blick", "florp"} & set(caption.split())
        assert scene.thing == nouns[noun]


def test_a_concept_is_one_thing_in_many_places_and_always_the_same(tmp_path: Path) -> None:
    first, second = (scenes.concept(CONCEPTS[0], 8, seed=4) for _ in range(2))
    assert first == second
    assert len(first) == 8
    assert {scene.thing for scene, _ in first} == {CONCEPTS[0]}
    assert len({scene.top for scene, _ in first}) > 3
    assert scenes.concept(CONCEPTS[0], 8, seed=5) != first
    for name in ("one", "two"):
        scenes.write_images(tmp_path / name, first, 32)
    ones, twos = (sorted((tmp_path / name).iterdir()) for name in ("one", "two"))
    assert [path.name for path in ones] == [f"{n:02}.{ending}" for n in range(1, 9) for ending in ("png", "txt")]
    assert [path.read_bytes() for path in ones] == [path.read_bytes() for path in twos]
    for path, (scene, where) in zip(ones[::2], first, strict=True):
        assert path.with_suffix(".txt").read_text(encoding="utf-8").strip() == where
        with Image.open(path) as image:
            assert image.size == (32, 32)
            assert image.tobytes() == scenes.draw(scene, 32).tobytes()
