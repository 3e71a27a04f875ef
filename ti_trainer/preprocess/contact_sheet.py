"""Draw a contact sheet: source images next to their results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ti_trainer.data.open_image import on_white, opened_image
from ti_trainer.data.upright import upright
from ti_trainer.preprocess.transforms import Result

ROW_PX, GAP_PX, TEXT_PX = 200, 8, 16


def sheet(rows: Iterable[tuple[Path, Sequence[Result], str]]) -> Image.Image:
    """One row per source image: the image and its results at one scale; below, its name, and its caption or error."""
    drawn = [_row(*each) for each in rows]
    width = max(each.width for each in drawn)
    page = Image.new("RGB", (width, sum(each.height for each in drawn)), "white")
    top = 0
    for each in drawn:
        page.paste(each, (0, top))
        top += each.height
    return page


def _row(path: Path, made: Sequence[Result], caption: str) -> Image.Image:
    images = [on_white(each.image) for each in made]
    if made:
        with opened_image(path) as opened:
            images.insert(0, on_white(upright(opened, (1, 2 * ROW_PX))))
    for image in images:
        image.thumbnail((4 * ROW_PX, ROW_PX))
    width = sum(each.width + GAP_PX for each in images)
    row = Image.new("RGB", (max(width, 800), (ROW_PX if images else 0) + TEXT_PX + 2 * GAP_PX), "white")
    left = 0
    for each in images:
        row.paste(each, (left, 0))
        left += each.width + GAP_PX
    sizes = ", ".join(f"{each.image.width} x {each.image.height}" for each in made)
    write_text(row, (2, row.height - TEXT_PX - GAP_PX), " - ".join(filter(None, (path.name, sizes, caption))))
    return row


def write_text(image: Image.Image, at: tuple[int, int], text: str, size: int = 0) -> None:
    """Write in black; `size` is that of the font in px, 0 for Pillow's usual one.

    Before Pillow 10.1 or without FreeType the font has one size and only Latin-1: other letters become ?.
    """
    draw, font = ImageDraw.Draw(image), _font(size)
    try:
        draw.text(at, text, "black", font=font)
    except UnicodeEncodeError:
        draw.text(at, text.encode("latin-1", "replace").decode("latin-1"), "black", font=font)


def text_size(text: str, size: int) -> float:
    """The width in px of a text of `write_text`."""
    font = _font(size)
    try:
        return float(font.getlength(text))
    except UnicodeEncodeError:
        return float(font.getlength(text.encode("latin-1", "replace").decode("latin-1")))


@lru_cache(4)
def _font(size: int) -> Any:
    try:
        return ImageFont.load_default(size) if size else ImageFont.load_default()
    except (TypeError, ImportError):  # Pillow before 10.1, or without FreeType
        return ImageFont.load_default()
