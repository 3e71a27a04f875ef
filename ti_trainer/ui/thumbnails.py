"""Images of a run as the page shows them: small, remembered, and nothing where a file is damaged or gone."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from PIL import Image

from ti_trainer.data.open_image import on_white, opened_image
from ti_trainer.data.upright import upright

SIDE_PX = 512
MOST = 24  # of a run: more are not told apart


def gallery(previews: Sequence[tuple[int, Path]], most: int = MOST) -> list[tuple[Image.Image, str]]:
    """Images with their steps, the first, the last, and those between evenly spread."""
    count = min(most, len(previews))
    chosen = [previews[number * (len(previews) - 1) // max(1, count - 1)] for number in range(count)]
    images = ((thumbnail(path), f"step {step}") for step, path in chosen)
    return [(image, label) for image, label in images if image is not None]


def thumbnail(path: Path, side: int = SIDE_PX) -> Image.Image | None:
    """The image, no larger than this; None if it cannot be read."""
    try:
        return _read(path, path.stat().st_mtime_ns, side)
    except Exception:  # a damaged file provokes anything
        return None


def small(path: Path, side: int = 192) -> Image.Image:
    """The image, or grey where it cannot be read, so that others keep their places."""
    return thumbnail(path, side) or Image.new("RGB", (side, side), "grey")


def address(path: Path, side: int = 264) -> str:
    """The image as a data: URI: so no file has to be served; empty if it cannot be read."""
    small = thumbnail(path, side)
    return "" if small is None else address_of(small)


def address_of(small: Image.Image) -> str:
    """A small image as a data: URI."""
    content = io.BytesIO()
    small.save(content, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


@lru_cache(maxsize=512)
def _read(path: Path, _changed: int, side: int) -> Image.Image:
    with opened_image(path) as opened:
        small = on_white(upright(opened, (side, side)))
    small.thumbnail((side, side))
    return small
