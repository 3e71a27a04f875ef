"""Make and cache thumbnails of images; files that are damaged or missing have none."""

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
MAX_PREVIEWS = 24  # of a run: more would be too small to compare


def gallery(previews: Sequence[tuple[int, Path]], most: int = MAX_PREVIEWS) -> list[tuple[Image.Image, str]]:
    """The first preview, the last, and evenly spaced ones between them, each with its step."""
    count = min(most, len(previews))
    chosen = [previews[number * (len(previews) - 1) // max(1, count - 1)] for number in range(count)]
    images = ((thumbnail(path), f"Step {step}") for step, path in chosen)
    return [(image, label) for image, label in images if image is not None]


def thumbnail(path: Path, side: int = SIDE_PX) -> Image.Image | None:
    """The image, at most `side` px wide and high; None if it cannot be read."""
    try:
        return _read(path, path.stat().st_mtime_ns, side)
    except Exception:  # damaged files raise all kinds of errors
        return None


def thumbnail_or_grey(path: Path, side: int = 192) -> Image.Image:
    """The thumbnail, or a grey square if it cannot be read, so that the others keep their places."""
    return thumbnail(path, side) or Image.new("RGB", (side, side), "grey")


def thumbnail_uri(path: Path, side: int = 264) -> str:
    """The thumbnail as a data: URI, so that no file has to be served; an empty string if it cannot be read."""
    image = thumbnail(path, side)
    return "" if image is None else data_uri(image)


def data_uri(image: Image.Image) -> str:
    """An image as a data: URI."""
    content = io.BytesIO()
    image.save(content, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


@lru_cache(maxsize=512)
def _read(path: Path, _changed_ns: int, side: int) -> Image.Image:
    with opened_image(path) as opened:
        image = on_white(upright(opened, (side, side)))
    image.thumbnail((side, side))
    return image
