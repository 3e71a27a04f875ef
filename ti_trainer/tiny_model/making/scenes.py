"""Captioned images of coloured shapes: what the embedded model was trained on, the demo concept and all test data.

An image is drawn from signed distances, so edges are smooth at any size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]
Rgb = tuple[float, float, float]

COLOURS: dict[str, Rgb] = {
    "red": (0.86, 0.13, 0.13),
    "orange": (0.96, 0.54, 0.10),
    "yellow": (0.97, 0.88, 0.18),
    "green": (0.16, 0.62, 0.22),
    "blue": (0.14, 0.33, 0.82),
    "purple": (0.52, 0.18, 0.66),
    "pink": (0.97, 0.55, 0.73),
    "brown": (0.48, 0.29, 0.14),
    "black": (0.09, 0.09, 0.10),
    "white": (0.95, 0.95, 0.95),
    "gray": (0.55, 0.55, 0.56),
}
TEXTURES = ("plain", "striped", "spotted", "checked")
SIZES = {"small": 0.26, "": 0.33, "big": 0.41}
POSITIONS = {
    "": (0.0, 0.0),
    "on the left": (-0.16, 0.0),
    "on the right": (0.16, 0.0),
    "at the top": (0.0, -0.16),
    "at the bottom": (0.0, 0.16),
}
# A background is two colours with a vertical blend (soft) or a horizon between them (hard).
SCENERY: dict[str, tuple[Rgb, Rgb, str]] = {
    "in the sky": ((0.33, 0.62, 0.93), (0.83, 0.92, 0.98), "soft"),
    "at night": ((0.03, 0.04, 0.14), (0.17, 0.16, 0.38), "soft"),
    "at sunset": ((0.45, 0.24, 0.50), (0.99, 0.66, 0.33), "soft"),
    "on grass": ((0.72, 0.87, 0.97), (0.36, 0.66, 0.26), "hard"),
    "on sand": ((0.40, 0.74, 0.88), (0.93, 0.82, 0.58), "hard"),
    "in snow": ((0.63, 0.71, 0.82), (0.96, 0.97, 0.99), "hard"),
}
PREFIXES = ("a picture of", "a photo of", "a drawing of", "a rendition of", "an image of", "a close-up of", "")


@dataclass(frozen=True)
class Thing:
    """What stands in an image: its shape and how it is painted. Colours are RGB in [0, 1]."""

    shape: str
    colour: Rgb
    texture: str = "plain"
    second_colour: Rgb = COLOURS["white"]


@dataclass(frozen=True)
class Scene:
    """A thing somewhere: position is the offset of its centre, size its radius, both in widths of the image."""

    thing: Thing
    size: float = SIZES[""]
    position: tuple[float, float] = (0.0, 0.0)
    top: Rgb = COLOURS["white"]
    bottom: Rgb = COLOURS["white"]
    horizon: bool = False
    angle: float = 0.0


# Things in colours that no caption names: what learning is measured with, the first of them the demo's.
CONCEPTS = (
    Thing("star", (0.05, 0.62, 0.60), "striped", (0.98, 0.62, 0.52)),
    Thing("heart", (0.50, 0.52, 0.12), "plain", (0.95, 0.95, 0.95)),
    Thing("flower", (0.98, 0.62, 0.52), "spotted", (0.05, 0.55, 0.55)),
    Thing("diamond", (0.66, 0.90, 0.36), "checked", (0.30, 0.10, 0.42)),
    Thing("ring", (0.78, 0.63, 0.93), "striped", (0.10, 0.22, 0.40)),
    Thing("moon", (0.42, 0.95, 0.80), "plain", (0.95, 0.95, 0.95)),
    Thing("cross", (0.72, 0.18, 0.46), "checked", (0.98, 0.86, 0.70)),
    Thing("circle", (0.25, 0.42, 0.45), "spotted", (0.99, 0.75, 0.20)),
)


def _circle(x: Array, y: Array) -> Array:
    return np.hypot(x, y) - 0.92


def _square(x: Array, y: Array) -> Array:
    return np.maximum(np.abs(x), np.abs(y)) - 0.80


def _diamond(x: Array, y: Array) -> Array:
    return (np.abs(x) * 1.25 + np.abs(y) * 0.85 - 0.92) / 1.5


def _triangle(x: Array, y: Array) -> Array:
    return np.maximum(np.abs(x) * 0.87 - (y + 0.95) * 0.48, y - 0.75)


def _star(x: Array, y: Array) -> Array:
    half = np.pi / 5
    sector = np.abs((np.arctan2(x, -y) + half) % (2 * half) - half)
    radius = np.hypot(x, y)
    along, across = radius * np.cos(sector) - 1.05, radius * np.sin(sector)
    notch = 0.50 * np.cos(half) - 1.05, 0.50 * np.sin(half)
    return (across * -notch[0] + along * notch[1]) / np.hypot(*notch)


def _heart(x: Array, y: Array) -> Array:
    """After Inigo Quilez, "2D distance functions"."""
    x, y = np.abs(x) * 0.60, 0.52 - y * 0.60
    lobe = np.hypot(x - 0.25, y - 0.75) - np.sqrt(2) / 4
    diagonal = np.maximum(x + y, 0) / 2
    point = np.minimum(np.hypot(x, y - 1), np.hypot(x - diagonal, y - diagonal)) * np.sign(x - y)
    return np.where(x + y > 1, lobe, point) / 0.60


def _cross(x: Array, y: Array) -> Array:
    x, y = np.abs(x), np.abs(y)
    return np.maximum(np.minimum(x, y) - 0.28, np.maximum(x, y) - 0.90)


def _moon(x: Array, y: Array) -> Array:
    return np.maximum(np.hypot(x + 0.05, y) - 0.95, 0.80 - np.hypot(x - 0.45, y))


def _ring(x: Array, y: Array) -> Array:
    return np.abs(np.hypot(x, y) - 0.68) - 0.25


def _flower(x: Array, y: Array) -> Array:
    petals = [np.hypot(x - 0.58 * np.sin(a), y + 0.58 * np.cos(a)) - 0.38 for a in np.arange(5) * 2 * np.pi / 5]
    return np.minimum.reduce([*petals, np.hypot(x, y) - 0.42])


SHAPES: dict[str, Callable[[Array, Array], Array]] = {
    "circle": _circle,
    "square": _square,
    "diamond": _diamond,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "cross": _cross,
    "moon": _moon,
    "ring": _ring,
    "flower": _flower,
}


def pattern(kind: str, x: Array, y: Array, soft: float) -> Array | None:
    """How much of the second colour shows, (H, W) in [0, 1]; x and y run from -1 to 1 across the thing."""
    if kind == "plain":
        return None
    if kind == "striped":
        distance = np.cos((x + y) * 4.4) / 5.5
    elif kind == "checked":
        distance = np.sin(x * 4.7) * np.sin(y * 4.7) / 4.7
    elif kind == "spotted":
        row = np.floor(y / 0.80 + 0.5)
        distance = 0.26 - np.hypot((x + row * 0.45 + 0.45) % 0.90 - 0.45, y - row * 0.80)
    else:
        message = f"unknown texture {kind!r}: expected one of {', '.join(TEXTURES)}"
        raise ValueError(message)
    return np.clip(distance / (1.6 * soft) + 0.5, 0, 1)


def draw(scene: Scene, size_px: int = 64) -> Image.Image:
    """The scene as an RGB image of size_px by size_px."""
    return Image.fromarray((draw_array(scene, size_px) * 255 + 0.5).astype(np.uint8))


def draw_array(scene: Scene, size_px: int = 64) -> Array:
    """The scene as (size_px, size_px, 3) in [0, 1]."""
    axis = (np.arange(size_px, dtype=np.float32) + 0.5) / size_px - 0.5
    u, v = axis[None, :], axis[:, None]
    blend = np.clip((v - 0.12) * size_px / 2 + 0.5, 0, 1) if scene.horizon else v + 0.5
    top, bottom = np.asarray(scene.top, np.float32), np.asarray(scene.bottom, np.float32)
    image = top + (bottom - top) * blend[..., None] * np.ones((1, size_px, 1), np.float32)

    thing = scene.thing
    x, y = (u - scene.position[0]) / scene.size, (v - scene.position[1]) / scene.size
    if scene.angle:
        cos, sin = np.cos(scene.angle), np.sin(scene.angle)
        x, y = cos * x + sin * y, cos * y - sin * x
    else:
        x, y = np.broadcast_arrays(x, y)
    pixel = 1 / (size_px * scene.size)
    inside = np.clip(0.5 - SHAPES[thing.shape](x, y) / (1.6 * pixel), 0, 1)[..., None]
    paint = np.asarray(thing.colour, np.float32)
    amount = pattern(thing.texture, x, y, pixel)
    if amount is not None:
        paint = paint + (np.asarray(thing.second_colour, np.float32) - paint) * amount[..., None]
    light = 1.06 - 0.14 * np.clip((x + y + 1.4) / 2.8, 0, 1)[..., None]
    image = image + (paint * light - image) * inside
    return np.clip(image, 0, 1).astype(np.float32)


def _contrast(a: Rgb, b: Rgb) -> float:
    return float(np.abs(np.asarray(a) - np.asarray(b)).max())


def _jitter(colour: Rgb, rng: np.random.Generator) -> Rgb:
    r, g, b = np.clip(np.asarray(colour) + rng.uniform(-0.03, 0.03, 3), 0, 1).tolist()
    return r, g, b


def random_thing(rng: np.random.Generator) -> Thing:
    """A thing in two arbitrary colours that are easy to distinguish; most of them have no name here."""
    first, second = rng.uniform(0.05, 0.95, 3), rng.uniform(0.05, 0.95, 3)
    while np.abs(first - second).max() < 0.35:
        second = rng.uniform(0.05, 0.95, 3)
    shape, texture = rng.choice(list(SHAPES)), rng.choice(TEXTURES)
    return Thing(str(shape), tuple(first.tolist()), str(texture), tuple(second.tolist()))


def _named_thing(rng: np.random.Generator) -> tuple[Thing, str]:
    shape, texture = str(rng.choice(list(SHAPES))), str(rng.choice(TEXTURES, p=(0.4, 0.2, 0.2, 0.2)))
    first, second = (str(name) for name in rng.choice(list(COLOURS), 2, replace=False))
    thing = Thing(shape, _jitter(COLOURS[first], rng), texture, _jitter(COLOURS[second], rng))
    words = [first] if texture == "plain" else [first, "and", second, texture]
    noun = "thing" if rng.random() < 0.04 else shape
    return thing, " ".join([*words, noun] if rng.random() < 0.9 else [noun])


def place(thing: Thing, rng: np.random.Generator) -> tuple[Scene, str, str]:
    """Put the thing somewhere it can be seen. Returns the scene, the word for its size and the words for where it is."""
    seen = [thing.colour] if thing.texture == "plain" else [thing.colour, thing.second_colour]
    visible = False
    while not visible:
        if rng.random() < 0.5:
            where = str(rng.choice(list(SCENERY)))
            top, bottom, kind = SCENERY[where]
            top, bottom = _jitter(top, rng), _jitter(bottom, rng)
        else:
            name = str(rng.choice(list(COLOURS)))
            where, kind = f"on a {name} background", "soft"
            top = bottom = _jitter(COLOURS[name], rng)
        visible = min(_contrast(a, b) for a in seen for b in (top, bottom)) > 0.2
    size = str(rng.choice(list(SIZES), p=(0.2, 0.5, 0.3)))
    position = "" if size == "big" else str(rng.choice(list(POSITIONS), p=(0.6, 0.1, 0.1, 0.1, 0.1)))
    x, y = np.asarray(POSITIONS[position]) + rng.uniform(-0.02, 0.02, 2)
    radius = SIZES[size] * rng.uniform(0.96, 1.04)
    scene = Scene(thing, radius, (float(x), float(y)), top, bottom, kind == "hard", rng.uniform(-0.04, 0.04))
    return scene, size, " ".join(word for word in (position, where) if word)


def random_scene(
    rng: np.random.Generator, nouns: dict[str, Thing] | None = None, any_colours: float = 0.0
) -> tuple[Scene, str]:
    """A scene and its caption.

    Three in ten captions use one of the nouns, if there are any: one word for a whole thing. `any_colours` is the share of
    things painted in colours without a name, whose caption leaves the thing out.
    """
    if rng.random() < any_colours:
        thing, words = random_thing(rng), "thing"
    elif nouns and rng.random() < 0.3:
        noun = str(rng.choice(list(nouns)))
        thing, words = nouns[noun], noun
    else:
        thing, words = _named_thing(rng)
    scene, size, where = place(thing, rng)
    parts = [
        str(rng.choice(PREFIXES)),
        "a" if rng.random() < 0.9 else "the",
        size if rng.random() < 0.85 else "",
        words,
        where if rng.random() < 0.92 else "",
    ]
    return scene, " ".join(part for part in parts if part)


def concept(thing: Thing, count: int, seed: int) -> list[tuple[Scene, str]]:
    """Scenes of one thing in many places, and for each the words for its surroundings: a dataset that teaches it."""
    rng = np.random.default_rng(seed)
    placed = [place(thing, rng) for _ in range(count)]
    return [(scene, where) for scene, _, where in placed]


def write_images(folder: Path, scenes: list[tuple[Scene, str]], size_px: int = 64) -> None:
    """Write a dataset: images with captions beside them in .txt files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (scene, where) in enumerate(scenes, 1):
        draw(scene, size_px).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(where + "\n", encoding="utf-8")
