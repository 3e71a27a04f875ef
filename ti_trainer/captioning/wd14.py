"""Taggers of the WD14 family: a folder with an ONNX model and the names of its outputs.

The format is that of SmilingWolf's taggers on Hugging Face: the input is BGR from 0 to 255 on a white square, the output a
probability for each line of selected_tags.csv.
"""

from __future__ import annotations

import csv
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ti_trainer.captioning.captioner import Captioner, Tags, missing_package
from ti_trainer.config.preprocessing import PreprocessConfig
from ti_trainer.errors import ConfigError
from ti_trainer.files import entered_path

LABEL, PACKAGE = "WD14 tagger (tags)", "onnxruntime"
MODEL, NAMES = "model.onnx", "selected_tags.csv"
GENERAL, CHARACTER = "0", "4"  # categories; others, such as ratings (9), are ignored
WHERE = (
    f"Download {MODEL} and {NAMES} of one of SmilingWolf's taggers on Hugging Face (such as wd-vit-tagger-v3) into one "
    "folder."
)


def is_installed(config: PreprocessConfig) -> bool:
    """Whether a tagger's folder is given, with its files, and onnxruntime is installed."""
    folder = entered_path(config.tagger)
    has_files = folder != Path() and all((folder / each).is_file() for each in (MODEL, NAMES))
    return has_files and importlib.util.find_spec(PACKAGE) is not None


def load(config: PreprocessConfig, device: torch.device) -> Captioner:
    """Open the tagger; ConfigError if its folder or onnxruntime is missing, or the model is not a WD14 tagger."""
    folder = _folder(config.tagger)
    names = _names(folder / NAMES)
    network = _Network.of(folder / MODEL, device)
    white = Image.new("RGB", (1, 1), "white")
    count = len(network.scores(white))  # so that any error comes before the first image
    if count != len(names):
        found = f"{NAMES} has {len(names)} tags, but {MODEL} has {count} outputs: use both files of the same tagger."
        raise _refused(found)
    least = {GENERAL: config.general_threshold, CHARACTER: config.character_threshold}

    def describe(image: Image.Image) -> Tags:
        scores = network.scores(image).tolist()
        rated = zip(names, scores, strict=True)
        return [(tag, score) for (tag, category), score in rated if category in least and score >= least[category]]

    return describe


@dataclass(frozen=True)
class _Network:
    """An open ONNX model; `size_px` is the side of its square input."""

    session: Any
    name: str
    size_px: int
    channels_last: bool

    @classmethod
    def of(cls, path: Path, device: torch.device) -> _Network:
        """Open it on CUDA, if that is the device and onnxruntime supports it, else on the CPU."""
        try:
            import onnxruntime
        except ImportError as error:
            raise missing_package(PACKAGE, error) from error
        providers: list[Any] = ["CPUExecutionProvider"]
        if device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
        try:
            session = onnxruntime.InferenceSession(str(path), providers=providers)
        except Exception as error:  # onnxruntime's errors have no common class
            reason = str(error).strip().splitlines()[0]
            found = f"{path} cannot be opened as an ONNX model ({reason})."
            raise _refused(found) from error
        (given, *_), shape = session.get_inputs(), session.get_inputs()[0].shape
        channels_last = shape[-1:] == [3]
        height, width = (shape[1:3] if channels_last else shape[2:4]) if len(shape) == 4 else (None, None)
        if not (isinstance(height, int) and height == width and 3 in (shape[1], shape[3]) and "float)" in given.type):
            found = f"{path} has the input {given.type} {shape}, expected float of [N, size, size, 3] or [N, 3, size, size]."
            raise _refused(found)
        return cls(session, given.name, height, channels_last)

    def scores(self, image: Image.Image) -> NDArray[np.float32]:
        """The score of each tag, in [0, 1]."""
        pixels = _square(image, self.size_px)[None]  # (1, size, size, 3)
        if not self.channels_last:
            pixels = pixels.transpose(0, 3, 1, 2)  # (1, 3, size, size)
        return self.session.run(None, {self.name: np.ascontiguousarray(pixels)})[0].reshape(-1)


def _square(image: Image.Image, size_px: int) -> NDArray[np.float32]:
    """(size, size, 3), BGR in [0, 255]: the whole image in the middle of a white square."""
    side = max(image.size)
    canvas = Image.new("RGB", (side, side), "white")
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    if side != size_px:
        canvas = canvas.resize((size_px, size_px), Image.Resampling.BICUBIC)
    return np.asarray(canvas, np.float32)[..., ::-1]


def _folder(entered: str) -> Path:
    if not entered.strip():
        found = "No tagger folder is chosen."
        raise _refused(found)
    folder = entered_path(entered)
    if not folder.is_dir():
        found = f"There is no folder {folder}."
        raise _refused(found)
    absent = [name for name in (MODEL, NAMES) if not (folder / name).is_file()]
    if absent:
        found = f"{folder} has no {' and no '.join(absent)}."
        raise _refused(found)
    return folder


def _names(path: Path) -> list[tuple[str, str]]:
    """Name and category of each output, in order."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return [(row["name"], row["category"].strip()) for row in csv.DictReader(file)]
    except (KeyError, AttributeError, UnicodeDecodeError, csv.Error) as error:
        found = f"{path} is not a table with the columns tag_id, name, category, count."
        raise _refused(found) from error


def _refused(found: str) -> ConfigError:
    return ConfigError(f"{found} {WHERE}", "tagger")
