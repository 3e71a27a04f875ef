"""How expected.json holds what the WebUI makes of prompts, for those who make it and those who compare with it."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ti_trainer import embedded

FILE, MODEL = Path(__file__).with_name("expected.json"), embedded.MODEL
TOKENS, WIDTH, NUMBERS, END = 77, 64, 4, 49407
FILL = {"clip": END, "open_clip": 0}
# Name -> number of vectors, in the order in which the WebUI comes upon them.
EMBEDDINGS = {"zz": 1, "zz-cat": 2, "w2": 3, "big-hat": 8, "qq-wide": 40, "full-75": 75, "my word": 2, "(odd)": 1}
EMBEDDINGS["Cap-Name"] = 1


def vectors_of(name: str) -> NDArray[np.float32]:
    """(V, D) of an embedding."""
    chance = np.random.RandomState(zlib.crc32(name.encode()))
    return (chance.standard_normal((EMBEDDINGS[name], WIDTH)) * 0.3).astype(np.float32)


def projected(hidden: NDArray[np.float32]) -> list[list[float]]:
    """A few numbers for each chunk of conditioning (1, n T, D), in which every one of its numbers has a share."""
    onto = np.random.RandomState(7).standard_normal((TOKENS * WIDTH, NUMBERS)) / (TOKENS * WIDTH) ** 0.5
    chunks = hidden.reshape(-1, TOKENS * WIDTH).astype(np.float64) @ onto
    return [[round(float(each), 6) for each in chunk] for chunk in chunks]


def shortened(ids: list[int], fill: int) -> list[int]:
    """Of 77 ids those before the end of text and what a chunk is filled up with."""
    kept = list(ids)
    while kept and kept[-1] == fill:
        kept.pop()
    return kept[:-1] if kept[-1] == END else kept


def whole(ids: list[int], fill: int) -> tuple[int, ...]:
    """What `shortened` was given."""
    return (*ids, *[END, *[fill] * TOKENS][: TOKENS - len(ids)])
