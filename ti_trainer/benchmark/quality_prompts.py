"""The concepts of the quality benchmark, and the prompts that show whether the rest of a prompt still counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ti_trainer.benchmark.quality_reading import BACKGROUNDS, Reading
from ti_trainer.tiny_model.making.scenes import COLOURS, CONCEPTS, POSITIONS, SIZES, TEXTURES, Rgb, Scene, Thing

# In colours that no caption names, as those of the embedded model's own measurements, and in shapes that these lack.
THINGS = (
    *CONCEPTS,
    Thing("square", (0.20, 0.75, 0.45), "striped", (0.93, 0.85, 0.60)),
    Thing("triangle", (0.85, 0.45, 0.62), "spotted", (0.20, 0.28, 0.50)),
    Thing("star", (0.62, 0.48, 0.80), "plain", (0.95, 0.95, 0.95)),
    Thing("heart", (0.30, 0.55, 0.62), "checked", (0.98, 0.80, 0.45)),
)
ASKED_COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")  # easy to distinguish
VISIBLE = 0.25  # of a colour channel: how much a thing's colours differ from the background's
PLACES, COLOUR_PROMPTS, TEXTURE_PROMPTS = 12, 6, 4  # prompts of each kind for a concept
WORD = "[name]"


@dataclass(frozen=True)
class Question:
    """A prompt with [name], what an obedient image shows, and such an image.

    `kind` is place, colour or texture: what the prompt asks for. Attributes that the prompt leaves open are "".
    """

    kind: str
    prompt: str
    expected: Reading
    scene: Scene

    def prompt_with(self, word: str) -> str:
        """The prompt with a word for the thing."""
        return self.prompt.replace(WORD, word)

    def answers(self, reading: Reading) -> dict[str, bool]:
        """By measure, whether the image does what the prompt asks for."""
        right = {
            each: getattr(reading, each) == getattr(self.expected, each)
            for each in ("background", "size", "position", "colour", "texture")
            if getattr(self.expected, each)
        }
        if self.kind == "place":
            return {**right, "place": all(right.values())}
        return {self.kind: right[self.kind]}


def questions(number: int) -> list[Question]:
    """The prompts for concept `number` of THINGS, always the same."""
    thing, rng = THINGS[number], np.random.default_rng((31, number))
    found = []
    for index in range(PLACES):
        size = "small" if index % 3 else "big"
        position = list(POSITIONS)[1 + index % 4] if size == "small" else ""
        where = _background(thing, rng)
        words = " ".join(filter(None, (position, where)))
        expected = Reading(where, "", size, position, "", "")
        found.append(
            Question("place", f"a picture of a {size} {WORD} {words}", expected, _scene(thing, size, position, where))
        )
    for name in _colours(thing, rng, COLOUR_PROMPTS):
        painted = Thing(thing.shape, COLOURS[name])
        where = _background(painted, rng)
        expected = Reading(where, "", "", "", name, "")
        found.append(Question("colour", f"a picture of a {name} {WORD} {where}", expected, _scene(painted, "", "", where)))
    others = [each for each in TEXTURES[1:] if each != thing.texture]
    for index in range(TEXTURE_PROMPTS):
        texture, (first, second) = others[index % len(others)], _colours(thing, rng, 2)
        painted = Thing(thing.shape, COLOURS[first], texture, COLOURS[second])
        where = _background(painted, rng)
        prompt = f"a picture of a {first} and {second} {texture} {WORD} {where}"
        found.append(Question("texture", prompt, Reading(where, "", "", "", "", texture), _scene(painted, "big", "", where)))
    return found


def _scene(thing: Thing, size: str, position: str, where: str) -> Scene:
    top, bottom, kind = BACKGROUNDS[where]
    return Scene(thing, SIZES[size], POSITIONS[position], top, bottom, kind == "hard")


def _background(thing: Thing, rng: np.random.Generator) -> str:
    """A background that the thing can be seen before."""
    seen = [thing.colour] if thing.texture == "plain" else [thing.colour, thing.second_colour]
    visible = [
        where
        for where, (top, bottom, _) in BACKGROUNDS.items()
        if min(_difference(a, b) for a in seen for b in (top, bottom)) > VISIBLE
    ]
    return str(rng.choice(visible))


def _colours(thing: Thing, rng: np.random.Generator, count: int) -> Sequence[str]:
    """Named colours that are not the thing's own, and differ from each other."""
    own = [thing.colour] if thing.texture == "plain" else [thing.colour, thing.second_colour]
    other = [each for each in ASKED_COLOURS if min(_difference(COLOURS[each], mine) for mine in own) > VISIBLE]
    chosen = [str(each) for each in rng.choice(other, min(count, len(other)), replace=False)]
    return chosen if len(chosen) == count else [*chosen, *chosen[: count - len(chosen)]]


def _difference(a: Rgb, b: Rgb) -> float:
    return float(np.abs(np.asarray(a) - np.asarray(b)).max())


def second_object(question: Question) -> Question:
    """The same with a second thing in the prompt."""
    return replace(question, prompt=f"{question.prompt} and a square")
