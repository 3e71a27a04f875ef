"""A process that makes pictures: a task a line on stdin, its answer a line on stdout, both JSON. Knows no other task.

Processes of our own, not multiprocessing: that would run the WebUI's start-up once more in each, or fork its CUDA.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ti_trainer.files import atomic
from ti_trainer.preprocess import faces
from ti_trainer.preprocess.config import PreprocessConfig
from ti_trainer.preprocess.pictures import SAVING, Result, results

DEBUG_FOLDER = "debug"


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
    """Make the pictures of one photo; names of what was written, or why there is none, or that nothing can be written."""
    try:
        made = results(Path(task["path"]), config, finder)
    except Exception as error:  # a damaged file provokes anything
        return {"failed": str(error) or type(error).__name__}
    try:
        return {"written": write(made, Path(task["folder"]), task["stem"], config.format, task["keep"])}
    except OSError as error:
        return {"disk": f"{error.strerror or error}: {error.filename or task['folder']}"}


def write(made: Sequence[Result], folder: Path, stem: str, ending: str, keep: Sequence[str]) -> list[str]:
    """Write pictures, each whole or not at all, but for names to keep; the names of the data set's pictures."""
    names = []
    for each in made:
        name = f"{stem}{each.suffix}.{ending}"
        if not each.is_debug:
            names.append(name)
        if name in keep:
            continue
        with atomic(folder / DEBUG_FOLDER / name if each.is_debug else folder / name) as new:
            each.picture.save(new, **SAVING[ending])
    return names
