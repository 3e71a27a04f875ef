"""Write the images that sum up a run: the loss curve, before and after, and the preview of the embedding's card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ti_trainer.config.output import MAX_PREVIEW_PROMPTS
from ti_trainer.files import atomic
from ti_trainer.preprocess.contact_sheet import GAP_PX, TEXT_PX, write_text
from ti_trainer.runs import loss_curve
from ti_trainer.runs.run_folder import Run

# What follows an embedding's name in those of its previews, in the order in which the WebUI looks for them.
PREVIEWS = tuple(f"{kind}.{ending}" for ending in ("png", "jpg", "jpeg", "webp", "gif") for kind in ("", ".preview"))
ROWS, ROW_GAP_PX = "Rows", 8  # the text chunk of a preview with several images: their number
OURS = ("Software", "TI Trainer")  # the text chunk of previews that we wrote, and may replace

MOST_PX, LEAST_PX = 256, 128  # the width of an image among others


@dataclass(frozen=True)
class Row:
    """Images side by side below a title, with labels below them, if any."""

    title: str
    images: Sequence[Image.Image]
    labels: Sequence[str] = ()


def labelled(rows: Sequence[Row]) -> Image.Image:
    """The rows below each other as one image; small images are enlarged."""
    width, height = (max(side) for side in zip(*(_cell(each).size for row in rows for each in row.images), strict=True))
    heights = [height + TEXT_PX * (2 if row.labels else 1) + GAP_PX for row in rows]
    size = (max(len(row.images) for row in rows) * (width + GAP_PX), sum(heights))
    page, top = Image.new("RGB", size, "white"), 0
    for row, row_height in zip(rows, heights, strict=True):
        write_text(page, (2, top + 2), row.title)
        for number, each in enumerate(row.images):
            page.paste(_cell(each), (number * (width + GAP_PX), top + TEXT_PX))
        for number, label in enumerate(row.labels):
            write_text(page, (number * (width + GAP_PX) + 2, top + TEXT_PX + height), label)
        top += row_height
    return page


def _cell(image: Image.Image) -> Image.Image:
    scale = max(1, LEAST_PX // image.width)
    cell = image.convert("RGB").resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    cell.thumbnail((MOST_PX, MOST_PX))
    return cell


def write_rows(images: Sequence[Image.Image], path: Path) -> None:
    """Write images below each other as one PNG, which says how many they are; a single one as it is."""
    if len(images) == 1:
        images[0].save(path, format="png")
        return
    size = (max(each.width for each in images), sum(each.height + ROW_GAP_PX for each in images) - ROW_GAP_PX)
    page, top, info = Image.new("RGB", size, "white"), 0, PngInfo()
    for each in images:
        page.paste(each.convert("RGB"), (0, top))
        top += each.height + ROW_GAP_PX
    info.add_text(ROWS, str(len(images)))
    page.save(path, format="png", pnginfo=info)


def first_row(image: Image.Image) -> Image.Image:
    """The first of the images that `write_rows` has put into one."""
    rows = str(image.info.get(ROWS, ""))
    if not rows.isdecimal() or not 1 < int(rows) <= MAX_PREVIEW_PROMPTS:
        return image
    return image.crop((0, 0, image.width, (image.height + ROW_GAP_PX) // int(rows) - ROW_GAP_PX))


def plot_losses(run: Run) -> Path | None:
    """Write loss.png: the raw and smoothed losses, validation losses, and the learning rate below."""
    rows = run.losses()
    if not rows:
        return None
    losses, rates = ([(row["step"], row[name]) for row in rows] for name in ("loss", "learn_rate"))
    path = run.path / "loss.png"
    with atomic(path) as new:
        loss_curve.png(losses, run.validation_losses(), rates).save(new, format="png")
    return path


def before_and_after(run: Run, until: int) -> Path | None:
    """Write before_after.png, the first preview beside the last one up to a step, if there are two."""
    images = [(step, path) for step, path in run.previews() if step <= until]
    if len(images) < 2:
        return None
    first, last = (Image.open(path).convert("RGB") for _, path in (images[0], images[-1]))
    scale = max(1, 256 // first.width)
    sides = [each.resize((each.width * scale, each.height * scale), Image.Resampling.NEAREST) for each in (first, last)]
    both = Image.new("RGB", (sides[0].width + sides[1].width + 8, max(side.height for side in sides)), "white")
    both.paste(sides[0], (0, 0))
    both.paste(sides[1], (sides[0].width + 8, 0))
    path = run.path / "before_after.png"
    with atomic(path) as new:
        both.save(new)
    return path


def preview_beside(run: Run, embedding: Path, until: int) -> Path | None:
    """Write NAME.preview.png, which WebUIs show on the embedding's card: its last preview up to a step.

    Writes nothing and returns None if the user has an image there that a WebUI would show.
    """
    previews = [path for step, path in run.previews() if 0 < step <= until]
    path = embedding.with_name(f"{embedding.stem}.preview.png")
    others = (embedding.with_name(embedding.stem + ending) for ending in PREVIEWS)
    if not previews or any(each.exists() for each in others if each != path) or (path.exists() and not _is_ours(path)):
        return None
    info = PngInfo()
    info.add_text(*OURS)
    with Image.open(previews[-1]) as last, atomic(path) as new:
        first_row(last).save(new, format="png", pnginfo=info)
    return path


def _is_ours(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return image.info.get(OURS[0]) == OURS[1]
    except OSError:
        return False
