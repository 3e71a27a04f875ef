"""Draw a comparison as one image: a row for each copy, a column for each prompt and seed, with labels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from PIL import Image

from ti_trainer.preprocess.contact_sheet import GAP_PX, text_size, write_text

SIDE_PX, LEAST_PX = 512, 128  # of an image in the grid
MOST_PIXELS = 2**25  # of the grid: images are drawn smaller then
FONT_PX = 18
LINE_PX = 24
LABEL_PX = 260  # beside the rows


def draw(
    files: Sequence[Sequence[Path]], rows: Sequence[Sequence[str]], columns: Sequence[tuple[str, str]]
) -> Image.Image | None:
    """The grid of the files that exist, by row and column; None if there are none.

    `rows` are the lines beside each row, `columns` the prompt and the seed above each.
    """
    first = next((image for each in files for path in each if (image := _opened(path)) is not None), None)
    if first is None:
        return None
    width, height = _scaled(first.size, len(files) * len(columns))
    wide = width + GAP_PX
    prompts = [(prompt, len(list(group))) for prompt, group in groupby(prompt for prompt, _ in columns)]
    headings = [_wrapped(prompt, count * wide - GAP_PX) for prompt, count in prompts]
    labels = [[line for text in lines for line in _wrapped(text, LABEL_PX - GAP_PX)] for lines in rows]
    heading_px = LINE_PX * (max(map(len, headings)) + 1) + GAP_PX
    heights = [max(height, LINE_PX * len(lines)) + GAP_PX for lines in labels]
    page = Image.new("RGB", (LABEL_PX + wide * len(columns), heading_px + sum(heights)), "white")
    left = LABEL_PX
    for lines, (_, count) in zip(headings, prompts, strict=True):
        _write(page, (left, GAP_PX // 2), lines)
        left += count * wide
    for number, (_, seed) in enumerate(columns):
        _write(page, (LABEL_PX + number * wide, heading_px - LINE_PX - GAP_PX // 2), [seed])
    top = heading_px
    for paths, lines, row_px in zip(files, labels, heights, strict=True):
        _write(page, (GAP_PX, top), lines)
        for number, path in enumerate(paths):
            if (image := _opened(path)) is not None:
                page.paste(image.resize((width, height), _resampling(image, width)), (LABEL_PX + number * wide, top))
        top += row_px
    return page


def _scaled(size: tuple[int, int], count: int) -> tuple[int, int]:
    """The size of an image in the grid: small ones are enlarged by a whole factor, large ones reduced."""
    width, height = size
    factor = float(max(1, LEAST_PX // max(size)))
    if max(size) > SIDE_PX:
        factor = SIDE_PX / max(size)
    factor = min(factor, (MOST_PIXELS / (width * height * count)) ** 0.5)
    return max(1, round(width * factor)), max(1, round(height * factor))


def _resampling(image: Image.Image, width: int) -> Image.Resampling:
    return Image.Resampling.NEAREST if width >= image.width else Image.Resampling.LANCZOS


def _wrapped(text: str, width: int) -> list[str]:
    """The text in lines of at most this width; a word that is longer is divided."""
    lines, line = [], ""
    for word in text.split():
        rest = word
        while text_size(rest, FONT_PX) > width and len(rest) > 1:
            if line:
                lines.append(line)
                line = ""
            fits = next((n for n in range(len(rest) - 1, 1, -1) if text_size(rest[:n], FONT_PX) <= width), 1)
            lines.append(rest[:fits])
            rest = rest[fits:]
        longer = f"{line} {rest}".strip()
        if line and text_size(longer, FONT_PX) > width:
            lines.append(line)
            longer = rest
        line = longer
    return [*lines, line] if line else lines


def _write(page: Image.Image, at: tuple[int, int], lines: Sequence[str]) -> None:
    for number, line in enumerate(lines):
        write_text(page, (at[0], at[1] + number * LINE_PX), line, FONT_PX)


def _opened(path: Path) -> Image.Image | None:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError:  # missing, or damaged since
        return None
