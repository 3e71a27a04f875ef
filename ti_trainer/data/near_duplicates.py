"""Group near-duplicates by a 64-bit perceptual hash and a few colours, without comparing every pair."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np

# Measured on photos and drawings: saved again, resized, brightened by a fifth or less 5 % of each side: at most 10 of 64
# bits and 10 levels of colour; different photos at least 20 bits; a drawing in other colours from 16 levels on.
ALIKE_BITS, ALIKE_COLOUR = 10, 13.0
_BITS, _PARTS = 64, 4
_PART_BITS = _BITS // _PARTS
# Of 10 bits that differ one of the four parts has 2 or fewer: so whatever is near shares a part, but for these bits.
_NEAR = ALIKE_BITS // _PARTS


def groups(bits: np.ndarray, colours: np.ndarray) -> list[list[int]]:
    """Images like the first of their group, which comes first in the order given; each is in one group, or in none.

    bits (N, 64) of truths, colours (N, h, w, 2). The first image takes all that are like it, then the first of those left
    does, and so on, as if each were compared with all.
    """
    left, found = np.ones(len(bits), bool), []
    if not len(bits):
        return []
    near = _Near(bits, colours)
    for first in range(len(bits)):
        if not left[first]:
            continue
        left[first] = False
        others = near(first, left)
        apart = np.abs(colours[others] - colours[first]).mean(axis=(1, 2, 3))
        others = others[apart <= ALIKE_COLOUR]
        left[others] = False
        if len(others):
            found.append([first, *others.tolist()])
    return found


class _Near:
    """Which of many 64 bits differ from one's in few of them: a table of who has which 16 bits in which quarter.

    Those of quite other colours are none of them.
    """

    def __init__(self, bits: np.ndarray, colours: np.ndarray) -> None:
        self._hues = colours.mean(axis=(1, 2))  # (N, 2)
        self._packed = np.packbits(bits, axis=1)  # (N, 8)
        parts = self._packed.view(">u2").astype(np.int64)  # (N, 4)
        self._keys = parts + (np.arange(_PARTS) << _PART_BITS)  # an index of the table: quarter and bits
        flat = self._keys.ravel()
        self._owners = np.argsort(flat, kind="stable")
        self._ends = np.searchsorted(flat[self._owners], np.arange(_PARTS << _PART_BITS), "right")
        self._owners //= _PARTS
        self._changes = np.array(list(_changes()), np.int64)

    def __call__(self, one: int, among: np.ndarray) -> np.ndarray:
        """Sorted indices of similar images where `among` (N,) is true."""
        keys = (self._keys[one][:, None] ^ self._changes).ravel()  # the quarter's number is in bits that never change
        ends = self._ends[keys]
        begins = np.where(keys > 0, self._ends[keys - 1], 0)
        counts = ends - begins
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        found = self._owners[np.repeat(begins, counts) + within]
        found = found[among[found]]
        # No two are nearer in all their colours than in the means of them; these sort out many that are flat, soon.
        found = found[np.abs(self._hues[found] - self._hues[one]).mean(axis=1) <= ALIKE_COLOUR + 0.01]
        differ = np.unpackbits(self._packed[found] ^ self._packed[one], axis=1).sum(axis=1)
        return np.unique(found[differ <= ALIKE_BITS])


def _changes() -> Iterator[int]:
    """What turns 16 bits into all that differ in at most two of them."""
    for count in range(_NEAR + 1):
        for bits in combinations(range(_PART_BITS), count):
            yield sum(1 << bit for bit in bits)
