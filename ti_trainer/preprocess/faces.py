"""Find faces in an image with OpenCV, and download the model of its detector.

The detector is YuNet (MIT licence, from OpenCV's model zoo), 230 kB, which the WebUI keeps in models/opencv; without it, the
Haar cascades that are part of OpenCV 4. Positions are in pixels of the image given.
"""

from __future__ import annotations

import hashlib
import os
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ti_trainer.errors import ConfigError
from ti_trainer.files import write_bytes
from ti_trainer.wording import pip_install

Face = tuple[float, float, float, float]  # left, top, width, height
Faces = Callable[[Image.Image], list[Face]]  # of an RGB image; not to be called by two threads at once

MODEL = "face_detection_yunet_2023mar.onnx"
OLD_MODEL = "face_detection_yunet.onnx"  # what the WebUI keeps for OpenCV before 4.8, which cannot read the new one
URL = (
    f"https://github.com/opencv/opencv_zoo/raw/b6e370b10f641879a87890d44e42173077154a05/models/face_detection_yunet/{MODEL}"
)
SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
LARGEST = 1 << 20  # bytes that are read of a download at most
FOLDER = Path(os.path.expanduser("~/.cache/ti-trainer"))  # noqa: PTH111 - Path's own raises where nobody has a home

SCORE, OVERLAP, CANDIDATES = 0.9, 0.3, 5000  # as the WebUI
HAAR = ("haarcascade_frontalface_default.xml", "haarcascade_frontalface_alt2.xml")


def load(folders: Sequence[Path]) -> tuple[Faces | None, str]:
    """The best there is to find faces with, None if there is nothing, and in words which it is and how to get better."""
    if text := missing():
        return None, f"Faces are not detected. {text}"
    trouble = ""
    for path in model_files(folders):
        finder, why_not = _tried(path)
        if finder:
            return finder, f"Faces are found by YuNet ({path.name})."
        trouble += f" {why_not}"
    better = f"Download the face detector, or put {MODEL} into {folders[0] if folders else FOLDER}.{trouble}"
    if cascades := _cascades():
        return _haar(cascades), f"Only faces that look straight ahead are found, by OpenCV's Haar cascades. {better}"
    return None, f"Faces are not detected: YuNet's model is missing. {better}"


def missing() -> str:
    """What has to be installed before edges and faces can be found; empty if nothing."""
    try:
        import cv2  # noqa: F401
    except ImportError as error:  # also where it is installed, but not the libraries of the system that it wants
        return f"OpenCV cannot be loaded ({error}): {pip_install('opencv-python-headless')}"
    return ""


def download(folder: Path, url: str = URL) -> Path:
    """Get YuNet's model and check that it is the known one. ConfigError, and nothing written, if that fails."""
    instead = f"Or get {URL} with a browser, and put it into {folder} as {MODEL}."
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - ours, or the caller's
            content = answer.read(LARGEST)
    except (OSError, ValueError) as error:
        message = f"The face detector could not be downloaded from {url} ({error}). Try again later. {instead}"
        raise ConfigError(message) from error
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        message = (
            f"What {url} sent is not YuNet's model: found {len(content)} bytes with the SHA-256 {found}, expected {SHA256}. "
            f"Nothing was kept. {instead}"
        )
        raise ConfigError(message)
    try:
        write_bytes(folder / MODEL, content)
    except OSError as error:
        message = f"The face detector could not be written into {folder} ({error}): make that folder writable."
        raise ConfigError(message) from error
    return folder / MODEL


def model_files(folders: Sequence[Path]) -> Iterator[Path]:
    """The folders' YuNet models, whole or not, the newer kind first."""
    return (folder / name for name in (MODEL, OLD_MODEL) for folder in folders if (folder / name).is_file())


def _tried(path: Path) -> tuple[Faces | None, str]:
    """YuNet with this model, or why not."""
    import cv2

    try:
        return _yunet(path.read_bytes(), path), ""
    except OSError as error:
        return None, f"{path} cannot be read ({error})."
    except cv2.error:
        if path.name == MODEL and hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
            return None, f"{path} is damaged: delete it."
        return None, f"{path} does not suit OpenCV {cv2.__version__}, which has to be 4.8 or newer for {MODEL}."


def _yunet(model: bytes, path: Path) -> Faces:
    """YuNet, tried on an empty image. cv2.error if this OpenCV cannot use the model."""
    with _quiet():
        detector = _detector(model, path)
        detector.setInputSize((100, 75))  # no multiples of 32: an OpenCV that does not suit the model fails at once
        detector.detect(np.zeros((75, 100, 3), np.uint8))

    def find(image: Image.Image) -> list[Face]:
        # The model was trained on faces up to about 300 px: larger ones may be seen in a smaller image only.
        for scale in (1, 2, 4):
            scaled = image.reduce(scale) if scale > 1 else image
            detector.setInputSize(scaled.size)
            found = detector.detect(np.ascontiguousarray(np.asarray(scaled)[:, :, ::-1]))[1]  # BGR; the WebUI gives it RGB
            if found is not None:
                return [_face(*(float(each) * scale for each in row[:4])) for row in found]
        return []

    return find


def _detector(model: bytes, path: Path) -> Any:
    import cv2

    limits = ((100, 75), SCORE, OVERLAP, CANDIDATES)
    try:  # from memory: on Windows OpenCV cannot open a path with letters outside of its code page
        return cv2.FaceDetectorYN.create("onnx", np.frombuffer(model, np.uint8), np.empty(0, np.uint8), *limits)
    except TypeError:  # before OpenCV 4.8
        return cv2.FaceDetectorYN.create(str(path), "", *limits)


def _cascades() -> list[Any]:
    """The Haar cascades for faces seen from the front; none in OpenCV 5."""
    import cv2

    folder = getattr(getattr(cv2, "data", None), "haarcascades", None)
    if folder is None or not hasattr(cv2, "CascadeClassifier"):
        return []
    loaded = [cv2.CascadeClassifier(str(Path(folder) / name)) for name in HAAR]
    return [each for each in loaded if not each.empty()]


def _haar(cascades: Sequence[Any]) -> Faces:
    """What the first cascade finds that finds anything. The WebUI looks for eyes before, and fails once it has found any."""

    def find(image: Image.Image) -> list[Face]:
        grey = np.asarray(image.convert("L"))
        least = int(min(image.size) * 0.05)
        for cascade in cascades:
            found = cascade.detectMultiScale(grey, scaleFactor=1.1, minNeighbors=7, minSize=(least, least))
            if len(found):
                return [_face(*map(float, row)) for row in found]
        return []

    return find


def _face(left: float, top: float, width: float, height: float) -> Face:
    return left, top, width, height


@contextmanager
def _quiet() -> Iterator[None]:
    """OpenCV does not print what it raises besides, nor what its new engine cannot do yet."""
    import cv2

    logging = getattr(getattr(cv2, "utils", None), "logging", None)
    if logging is None:
        yield
        return
    before = logging.setLogLevel(0)
    try:
        yield
    finally:
        logging.setLogLevel(before)
