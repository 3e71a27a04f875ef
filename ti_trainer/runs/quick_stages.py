"""The stages of a quick training, and what each says when it is done."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ti_trainer.data import image_quality
from ti_trainer.data.caption_files import captions_among
from ti_trainer.data.image_files import list_images
from ti_trainer.preprocess.runner import Preprocessing
from ti_trainer.preprocess.summary import Summary
from ti_trainer.wording import counted

STAGES = {  # in their order, with their titles
    "images": "Images",
    "dataset": "Dataset",
    "embedding": "Embedding",
    "training": "Training",
    "result": "Result",
}
NAMED = 5  # files in a message

StageStatus = Literal["waiting", "running", "done", "stopped", "failed"]
Report = Callable[["Stage"], None]


@dataclass(frozen=True)
class Stage:
    """What one of STAGES did, or is doing."""

    name: str
    status: StageStatus = "waiting"
    text: str = ""
    warnings: tuple[str, ...] = ()
    progress: tuple[int, int] = (0, 0)  # done, of a total


def images_stage(images: Path, found: image_quality.Report | None) -> Stage:
    """What was found among the images; None: they could not be compared."""
    if found is None:
        warning = "Duplicates were not looked for, since the package imagehash is not installed."
        return Stage("images", "done", counted(len(list_images(images).images), "image"), (warning,))
    text = counted(found.count, "image")
    if found.suggested:
        text += f"; {len(found.suggested)} left out: {reasons(found, found.suggested)}"
    best = {group[0] for group in found.alike}
    others = [path for path in found.suspects if path not in found.suggested and _other_reasons(found, path, best)]
    warning = f"Check these: {reasons(found, others, best)}." if others else ""
    return Stage("images", "done", f"{text}.", tuple(filter(None, (warning,))))


def dataset_stage(work: Preprocessing, summary: Summary, warnings: Sequence[str], *, captioned: bool) -> Stage:
    """What was made of them."""
    listing, config = list_images(work.destination), work.config
    images, written = listing.images, len(captions_among(listing.files, listing.images))
    if written and not captioned:
        some = f"Captions are not used, since only {written} of {len(images)} images have one."
        warnings = (*warnings, f"{some} Write captions for all images, or for none, and start again.")
    how = "cropped around the subject" if config.resize == "focal" else "each with its own aspect ratio"
    prompts = "with captions" if captioned else "without captions"
    text = f"{counted(len(images), 'image')} at {config.width} x {config.height} px, {how}, {prompts}: {work.destination}"
    failed = [f"{name} could not be used: {reason.rstrip('.')}." for name, reason in summary.failed[:NAMED]]
    if len(summary.failed) > NAMED:
        failed.append(f"{len(summary.failed) - NAMED} more could not be used.")
    return Stage("dataset", "done", text, (*warnings, *failed, *summary.notes))


def _other_reasons(found: image_quality.Report, path: Path, best: Container[Path]) -> list[str]:
    """Why an image may be unsuitable, apart from being the best of several alike."""
    return list(found.reasons[path][1:] if path in best else found.reasons[path])


def reasons(found: image_quality.Report, paths: Collection[Path], best: Container[Path] = ()) -> str:
    """Some of these images with what was found about each."""
    named = sorted(paths)
    some = [f"{path.name} ({'; '.join(_other_reasons(found, path, best))})" for path in named[:NAMED]]
    more = [f"and {len(named) - NAMED} more"] if len(named) > NAMED else []
    return ", ".join(some + more)
