"""A worker process that makes images: reads tasks from stdin and writes answers to stdout, one JSON object per line.

Not multiprocessing: that would run the WebUI's start-up again in each process, or fork a process that uses CUDA.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ti_trainer.config.preprocessing import PreprocessConfig
from ti_trainer.data.open_image import opened_image
from ti_trainer.data.upright import upright_size
from ti_trainer.errors import DatasetError
from ti_trainer.files import atomic
from ti_trainer.preprocess import faces
from ti_trainer.preprocess.manifest import FileSignature, is_taken_away, mask_names, note, signature_of
from ti_trainer.preprocess.source import DEBUG_FOLDER
from ti_trainer.preprocess.transforms import SAVING, Result, results


def main(settings: str) -> None:
    """Work until stdin ends. `settings` is JSON with the options and the folders of face detectors."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # output of libraries must not mix with answers
    try:
        import cv2

        cv2.setNumThreads(1)  # there is one process per core already
    except ImportError:
        pass
    given = json.loads(settings)
    config = PreprocessConfig(**given["config"])
    finder = None
    if config.resize == "focal":
        finder, _ = faces.load([Path(each) for each in given["face_models"]])
    for line in sys.stdin:
        answers.write(json.dumps(work(json.loads(line), config, finder)) + "\n")
        answers.flush()


def work(task: dict[str, Any], config: PreprocessConfig, finder: Callable | None) -> dict[str, Any]:
    """Make the results of one source image. The answer has what was written, or the reason of a failure.

    "failed" is about this image, "disk" about the destination. "painted" are masks that the user painted, which are kept.
    """
    mask, mark = task["mask"] or (None, "")
    try:
        made = results(Path(task["path"]), config, finder, Path(mask) if mask else None)
    except Exception as error:  # a damaged file can raise anything
        return {"failed": str(error) or type(error).__name__}
    folder, stem = Path(task["folder"]), task["stem"]
    wanted = [(each, f"{stem}{each.suffix}") for each in made if f"{stem}{each.suffix}" not in task["keep"]]
    try:
        foreign = [name for _, plain in wanted if _is_foreign(folder / (name := f"{plain}.{config.format}"), task["mine"])]
        if foreign:
            there = ", ".join(foreign[:3])
            return {"failed": f"{there} in the destination was not made by preprocessing: move it away"}
        written = _write(wanted, folder, stem, config.format)
        masks, painted = _write_masks(made, task, mark)
    except OSError as error:
        return {"disk": f"{error.strerror or error}: {error.filename or folder}"}
    return {"written": written, "masks": masks, "painted": painted}


def _is_foreign(path: Path, mine: dict[str, FileSignature]) -> bool:
    return path.exists() and signature_of(path) != mine.get(path.name)


def _write(wanted: Sequence[tuple[Result, str]], folder: Path, stem: str, ending: str) -> dict[str, FileSignature]:
    """Write images atomically. Returns names and signatures, without debug images."""
    written = {}
    for each, plain in wanted:
        name = f"{plain}.{ending}"
        with atomic(folder / DEBUG_FOLDER / name if each.is_debug else folder / name) as new:
            each.image.save(new, **SAVING[ending])
            if not each.is_debug:
                written[name] = signature_of(new)
                note(folder, stem, name=name, signature=written[name])
    return written


def _write_masks(made: Sequence[Result], task: dict[str, Any], mark: str) -> tuple[dict[str, FileSignature], list[str]]:
    """Write masks next to their images. Returns signatures, and masks that the user painted or deleted."""
    folder, written, painted = Path(task["folder"]), {}, []
    for each in made:
        plain = task["stem"] + each.suffix
        if each.mask is None:
            continue
        if plain in task["keep"] and not _has_size(folder, plain, task["mine"], each.image.size):
            continue
        names = mask_names(plain)
        foreign = [name for name in names if _is_foreign(folder / name, task["masks"]) or is_taken_away(folder, name)]
        painted += foreign
        if foreign:
            continue
        name = f"{plain}{mark}.png"  # masks are always lossless
        with atomic(folder / name) as new:
            each.mask.save(new, **SAVING["png"])
            written[name] = signature_of(new)
            note(folder, task["stem"], name=name, signature=written[name], mask=True)
    return written, painted


def _has_size(folder: Path, plain: str, images: dict[str, FileSignature], size: tuple[int, int]) -> bool:
    """Whether a kept image exists and has the size of its mask."""
    there = [folder / name for name in images if Path(name).stem == plain and (folder / name).exists()]
    try:
        with opened_image(there[0]) as opened:
            return upright_size(opened) == size
    except (IndexError, OSError, DatasetError):
        return False
