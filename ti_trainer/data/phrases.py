"""Phrases that are added to prompts of training, so that an embedding learns to leave the rest of a prompt as it is."""

from __future__ import annotations

import re

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
COMMAS = 0.3  # share of the places that follow a comma
OF_A_STYLE = re.compile(r"\b(style of|by)\W*$")  # before a name that attributes do not fit


def with_phrase(prompt: str, name: str, rng: np.random.Generator) -> str:
    """The prompt with an attribute before the embedding's name, a place at the end, or both."""
    attribute, place = str(rng.choice(ATTRIBUTES)), str(rng.choice(PLACES))
    joint = ", " if rng.random() < COMMAS else " "
    kind = rng.choice(["attribute", "place", "both"])
    found = re.search(word_pattern(name), prompt)
    before = "" if found is None else prompt[: found.start()]
    if found is None or OF_A_STYLE.search(before):
        kind = "place"
    if kind != "place":
        prompt = f"{before}{attribute} {prompt[len(before) :]}"
    return prompt if kind == "attribute" else prompt + joint + place


def without_name(prompt: str, name: str, text: str) -> str:
    """The prompt with a text in place of the embedding's name."""
    return re.sub(word_pattern(name), lambda _: text, prompt)
