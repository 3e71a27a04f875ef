"""Images that sum a run up, for people who would rather look than read: the loss curve, before and after."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ti_trainer.files import atomic
from ti_trainer.runs.run_folder import Run

PREVIEWS = tuple(f"{kind}.{ending}" for kind in ("", ".preview") for ending in ("png", "jpg", "jpeg", "webp", "gif"))
OURS = ("Software", "TI Trainer")  # in a preview that we wrote, which we may replace


def smoothed(values: list[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average, corrected for its beginning."""
    average, smooth = 0.0, []
    for number, value in enumerate(values, 1):
        average = weight * average + (1 - weight) * value
        smooth.append(average / (1 - weight**number))
    return smooth


def plot_losses(run: Run) -> Path | None:
    """Draw loss.png from the table: what each line says, the smoothed curve, and the learning rate below."""
    rows = run.losses()
    if not rows:
        return None
    from matplotlib.figure import Figure  # slow to import, and needed once a run

    steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
    figure = Figure(figsize=(8, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [4, 1]})
    above.plot(steps, losses, ".", color="#9bb3d1", label="loss")
    above.plot(steps, smoothed(losses), color="#1f4e8c", label="smoothed")
    if fixed := run.validation_losses():
        above.plot(*zip(*fixed, strict=True), "o-", color="#c0392b", label="validation")
    above.set(ylabel="loss", ylim=(0, float(np.quantile(losses, 0.98)) * 1.3))
    above.legend()
    below.step(steps, [row["learn_rate"] for row in rows], color="#b5651d", where="pre")
    below.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
    path = run.path / "loss.png"
    with atomic(path) as new:
        figure.savefig(new, dpi=100, format="png")
    return path


def before_and_after(run: Run) -> Path | None:
    """before_after.png: the first preview beside the last, if there are two."""
    images = run.previews()
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


def preview_beside(run: Run, embedding: Path) -> Path | None:
    """NAME.preview.png, which WebUIs show on an embedding's card: the last preview of what was learned, if there is one.

    None, and nothing is written, where somebody has put an image there that a WebUI would show.
    """
    drawn = [path for step, path in run.previews() if step > 0]
    path = embedding.with_name(f"{embedding.stem}.preview.png")
    others = (embedding.with_name(embedding.stem + ending) for ending in PREVIEWS)
    if not drawn or any(each.exists() for each in others if each != path) or (path.exists() and not _is_ours(path)):
        return None
    info = PngInfo()
    info.add_text(*OURS)
    with Image.open(drawn[-1]) as last, atomic(path) as new:
        last.save(new, format="png", pnginfo=info)
    return path


def _is_ours(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return image.info.get(OURS[0]) == OURS[1]
    except OSError:
        return False
