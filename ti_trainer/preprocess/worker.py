"""A process that makes images: a task a line on stdin, its answer a line on stdout, both JSON. Knows no other task.

Processes of our own, not multiprocessing: that would run the WebUI's start-up once more in each, or fork its CUDA.
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
from ti_trainer.preprocess.manifest import FileSignature, is_taken_away, mask_names, note, stamp_of
from ti_trainer.preprocess.source import DEBUG_FOLDER
from ti_trainer.preprocess.transforms import SAVING, Result, results


def main(settings: str) -> None:
    """Work until stdin ends. `settings`: the options and the folders of face detectors, as JSON."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is no answer
    try:
        import cv2

        cv2.setNumThreads(1)  # one process for each core is there already
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
    """Make the images of one photo; what was written, or why there is nothing, or that nothing can be written.

    Of masks it says which were written, and which somebody painted, that stay.
    """
    mask, mark = task["mask"] or (None, "")
    try:
        made = results(Path(task["path"]), config, finder, Path(mask) if mask else None)
    except Exception as error:  # a damaged file provokes anything
        return {"failed": str(error) or type(error).__name__}
    folder, stem = Path(task["folder"]), task["stem"]
    wanted = [(each, f"{stem}{each.suffix}") for each in made if f"{stem}{each.suffix}" not in task["keep"]]
    try:
        strange = [name for _, plain in wanted if _is_strange(folder / (name := f"{plain}.{config.format}"), task["mine"])]
        if strange:
            there = ", ".join(strange[:3])
            return {"failed": f"{there} is in the destination and was not made here: move it, or take another one"}
        written = _write(wanted, folder, stem, config.format)
        masks, painted = _write_masks(made, task, mark)
    except OSError as error:
        return {"disk": f"{error.strerror or error}: {error.filename or folder}"}
    return {"written": written, "masks": masks, "painted": painted}


def _is_strange(path: Path, mine: dict[str, FileSignature]) -> bool:
    return path.exists() and stamp_of(path) != mine.get(path.name)


def _write(wanted: Sequence[tuple[Result, str]], folder: Path, stem: str, ending: str) -> dict[str, FileSignature]:
    """Write images, each whole or not at all; names and stamps of those of the dataset."""
    written = {}
    for each, plain in wanted:
        name = f"{plain}.{ending}"
        with atomic(folder / DEBUG_FOLDER / name if each.is_debug else folder / name) as new:
            each.image.save(new, **SAVING[ending])
            if not each.is_debug:
                written[name] = stamp_of(new)
                note(folder, stem, name=name, signature=written[name])
    return written


def _write_masks(made: Sequence[Result], task: dict[str, Any], mark: str) -> tuple[dict[str, FileSignature], list[str]]:
    """Write masks beside their images: names and stamps; and names of those that somebody painted, or took away."""
    folder, written, painted = Path(task["folder"]), {}, []
    for each in made:
        plain = task["stem"] + each.suffix
        if each.mask is None:
            continue
        if plain in task["keep"] and not _has_size(folder, plain, task["mine"], each.image.size):
            continue
        names = mask_names(plain)
        theirs = [name for name in names if _is_strange(folder / name, task["masks"]) or is_taken_away(folder, name)]
        painted += theirs
        if theirs:
            continue
        name = f"{plain}{mark}.png"  # whatever the images' format is: a mask loses nothing
        with atomic(folder / name) as new:
            each.mask.save(new, **SAVING["png"])
            written[name] = stamp_of(new)
            note(folder, task["stem"], name=name, signature=written[name], mask=True)
    return written, painted


def _has_size(folder: Path, plain: str, images: dict[str, FileSignature], size: tuple[int, int]) -> bool:
    """Whether an image that is kept as somebody changed it is there, and of the size that its mask would have."""
    there = [folder / name for name in images if Path(name).stem == plain and (folder / name).exists()]
    try:
        with opened_image(there[0]) as opened:
            return upright_size(opened) == size
    except (IndexError, OSError, DatasetError):
        return False
