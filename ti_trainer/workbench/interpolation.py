"""Spherical interpolation of vectors.

V vectors, D width of a text encoder's token embeddings.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
PARALLEL = 1e-6  # radians, below which the angle between two directions is not used


def slerp(a: Array, b: Array, t: float) -> Array:
    """Spherical interpolation of each vector of (V, D) and (V, D) or (1, D), with the norm interpolated.

    Where the directions are the same, or a vector is zero, it is linear. ValueError for opposite directions, between which
    there is no single path.
    """
    a, b = np.broadcast_arrays(a, b)
    lengths = [np.linalg.norm(each, axis=1, keepdims=True) for each in (a, b)]  # (V, 1)
    u, v = (each / np.where(length > 0, length, 1) for each, length in zip((a, b), lengths, strict=True))
    # More accurate than the arc cosine for small and large angles.
    angle = 2 * np.arctan2(np.linalg.norm(u - v, axis=1, keepdims=True), np.linalg.norm(u + v, axis=1, keepdims=True))
    directed = (lengths[0] > 0) & (lengths[1] > 0)
    if (directed & (angle > np.pi - PARALLEL)).any():
        message = "two of the vectors have opposite directions, between which slerp has no single path: use lerp."
        raise ValueError(message)
    turned = directed & (angle > PARALLEL)
    sine = np.where(turned, np.sin(angle), 1)
    direction = (np.sin((1 - t) * angle) * u + np.sin(t * angle) * v) / sine
    interpolated: Array = np.where(turned, ((1 - t) * lengths[0] + t * lengths[1]) * direction, (1 - t) * a + t * b)
    return interpolated
