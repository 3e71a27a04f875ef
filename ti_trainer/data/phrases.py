"""Phrases that are added to prompts of training, so that an embedding learns to leave the rest of a prompt as it is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ti_trainer.embedding import word_pattern

# Common words, which any model of Stable Diffusion knows.
PLACES = (
    *("on grass", "in snow", "on a beach", "at night", "in water", "in a forest", "on a table", "in a room", "in the sky"),
    *("at sunset", "on a white background", "on a black background", "on a red background", "on a blue background"),
)
ATTRIBUTES = (
    *("red", "blue", "green", "yellow", "black", "white", "purple", "orange"),
    *("small", "big", "striped", "spotted", "old", "shiny", "wooden"),
)
COMMAS = 4  # a comma comes before every fourth place
OF_A_STYLE = re.compile(r"\b((style|manner) of|by|as)\W*$")  # before a name that attributes do not fit


@dataclass(frozen=True)
class Phrase:
    """The phrase of a sample that is repeated: the prompt without it, and what identifies the sample."""

    plain_prompt: str
    stream: int
    sample: int


def with_phrase(prompt: str, name: str, number: int, seed: tuple[int, ...]) -> str:
    """The prompt with an attribute before the embedding's name, a place at the end, or both.

    Phrases with successive numbers have each attribute and each place before one comes again, in an order of the seed.
    """
    attributes, places = _shuffled(ATTRIBUTES, (*seed, 1)), _shuffled(PLACES, (*seed, 2))
    attribute, place = attributes[number % len(attributes)], places[number % len(places)]
    kind = (number + number // len(attributes)) % 3  # so that an attribute is not always of the same kind
    joint = ", " if (number + number // len(places)) % COMMAS == 0 else " "  # likewise
    found = re.search(word_pattern(name), prompt)
    before = "" if found is None else prompt[: found.start()]
    if found is None or OF_A_STYLE.search(before):
        return prompt + joint + place
    if kind != 1:
        prompt = f"{before}{attribute} {prompt[len(before) :]}"
    return prompt if kind == 0 else prompt + joint + place


@lru_cache(maxsize=256)
def _shuffled(texts: Sequence[str], seed: tuple[int, ...]) -> list[str]:
    return [str(each) for each in np.random.default_rng(seed).permutation(texts)]


def without_name(prompt: str, name: str, text: str) -> str:
    """The prompt with a text in place of the embedding's name."""
    return re.sub(word_pattern(name), lambda _: text, prompt)
