"""Image quality: find images that may harm training, because they are alike, small, blurred, long or unreadable.

left_out.py moves them out of the dataset. Sizes are (width, height) in pixels of the upright image.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Callable, Container, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from ti_trainer.data import near_duplicates
from ti_trainer.data.caption_files import captions_among
from ti_trainer.data.image_files import find_images
from ti_trainer.data.listing import FLIPPED, files_in
from ti_trainer.data.open_image import on_white, opened_image
from ti_trainer.data.preflight import same_files
from ti_trainer.data.upright import upright, upright_size
from ti_trainer.errors import ConfigError, StoppedError
from ti_trainer.wording import pip_install

SIDE_PX = 512  # sharpness and likeness are judged on images whose shorter side is no longer than this
# Measured on photos and drawings: sharp ones 0.1 to 0.8, up to 0.9 where only a part is sharp; blurred by 2 px 1.4 to 2.4.
BLURRED_PX = 1.4
LOSSLESS = {"PNG", "BMP", "DIB", "GIF", "PPM", "TGA", "PCX", "SGI", "QOI", "MSP", "XBM", "XPM"}  # and some TIFF and WebP
LONGEST = 2.0  # times as long as wide
PROBE_PX = 1.5  # how much an image is blurred to see what that changes


@dataclass(frozen=True)
class Report:
    """The result. The best of each group of `alike` comes first; `suggested` are the images to leave out."""

    count: int
    alike: tuple[tuple[Path, ...], ...]
    reasons: Mapping[Path, tuple[str, ...]]
    suggested: frozenset[Path]

    @property
    def suspects(self) -> list[Path]:
        """All images with a finding: first those that are alike, side by side, then the others by name."""
        grouped = [path for group in self.alike for path in group]
        return grouped + sorted(set(self.reasons) - set(grouped))


@dataclass(frozen=True)
class _Seen:
    """One image: its upright size, the width of its sharpest edges in px, 64 bits of its structure, 4 x 4 x 2 colours.

    `length` is that of the file, in bytes.
    """

    path: Path
    size: tuple[int, int] = (0, 0)
    edge_px: float = 0.0
    bits: np.ndarray | None = None
    colours: np.ndarray | None = None
    error: str = ""
    is_lossless: bool = False
    has_caption: bool = False
    length: int = 0


def check(
    folder: Path,
    width: int = SIDE_PX,
    height: int = SIDE_PX,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Report:
    """Check every image of a folder. With width or height 0, small images are not reported.

    DatasetError if there is none, ConfigError without the package imagehash, StoppedError if stopped.
    """
    paths, seen = find_images(folder), list[_Seen]()
    look = partial(_looked_at, imagehash=_imagehash(), captioned=captions_among(files_in(folder), paths))
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for one in pool.map(look, paths):
            seen.append(one)
            progress(len(seen), len(paths))
            if should_stop():
                pool.shutdown(cancel_futures=True)
                message = "The check was stopped; nothing was changed."
                raise StoppedError(message)
    return _report(seen, width, height)


def edge_width(grey: np.ndarray) -> float:
    """How wide the sharpest edges are, as the sigma in px of a blur that makes a step so wide; inf without any edge.

    grey (H, W). Contrast cancels out: an edge of width s is blurred again by p, and its slope falls by sqrt(s² + p²) / s
    (Zhuo and Sim, Defocus map estimation from a single image, 2011). A blurred background does not matter.
    """
    slope, after = _slope(grey), _slope(_blurred(grey, PROBE_PX))  # (H - 2, W - 2)
    steep = slope >= max(float(np.percentile(slope, 99)), 1e-3)
    if not steep.any():
        return math.inf
    ratio = slope[steep] / np.maximum(after[steep], 1e-6)
    widths = np.where(ratio > 1.0001, PROBE_PX / np.sqrt(np.maximum(ratio**2 - 1, 1e-6)), 50.0)
    return float(np.percentile(widths, 25))


def _slope(grey: np.ndarray) -> np.ndarray:
    return np.hypot(grey[1:-1, 2:] - grey[1:-1, :-2], grey[2:, 1:-1] - grey[:-2, 1:-1]) / 2


def _blurred(grey: np.ndarray, sigma: float) -> np.ndarray:
    reach = round(3 * sigma)
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2)).astype(np.float32)
    weights /= weights.sum()
    for axis in (0, 1):
        padded = np.pad(grey, [(reach, reach) if each == axis else (0, 0) for each in (0, 1)], "edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, len(weights), axis)  # (H, W, taps)
        grey = windows @ weights
    return grey


def _imagehash() -> ModuleType:
    try:
        import imagehash
    except ImportError as error:
        message = (
            f"Finding images that are alike needs the package imagehash, which is not installed: {pip_install('imagehash')}"
        )
        raise ConfigError(message) from error
    return imagehash


def _looked_at(path: Path, imagehash: ModuleType, captioned: Container[Path]) -> _Seen:
    try:
        with opened_image(path) as opened:
            size, is_lossless = upright_size(opened), _is_lossless(opened, path)
            image = on_white(upright(opened, (SIDE_PX, SIDE_PX)))
        scale = SIDE_PX / min(image.size)
        if scale < 1:
            width, height = (max(1, round(side * scale)) for side in image.size)
            image = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
        grey = image.convert("L")
        pixels = np.asarray(grey, np.float32)
        flat = 0.0 if np.ptp(pixels) else math.inf
        edge_px = edge_width(pixels) if min(pixels.shape) > 2 else flat
        colours = np.asarray(image.convert("YCbCr").resize((4, 4), Image.Resampling.BOX), np.float32)[..., 1:]
        bits, length = imagehash.phash(grey).hash.flatten(), path.stat().st_size
        return _Seen(path, size, edge_px, bits, colours, "", is_lossless, path in captioned, length)
    except Exception as error:  # a damaged file provokes anything
        return _Seen(path, error=str(error).replace(str(path), path.name) or type(error).__name__)


def _report(seen: Sequence[_Seen], width: int, height: int) -> Report:
    reasons: dict[Path, list[str]] = defaultdict(list)
    suggested: set[Path] = set()
    readable = [one for one in seen if not one.error]
    groups = []
    mirrored = _mirrored_copies([one.path for one in readable])
    # A mirrored copy of an image that is the same on both sides is like it, and wanted: so they are not compared.
    for part in ([one for one in readable if one.path not in mirrored], [one for one in readable if one.path in mirrored]):
        same = {path: number for number, paths in enumerate(same_files([one.path for one in part])) for path in paths}
        for group in _groups(part):
            best, *others = (one.path for one in group)
            groups.append((best, *others))
            reasons[best].append(f"the best of {len(group)} alike")
            for path in others:
                exactly = path in same and same[path] == same.get(best)
                reasons[path].append(f"{'the same file as' if exactly else 'nearly the same as'} {best.name}")
                suggested.add(path)
    for one in seen:
        found = _wrong_with(one, width, height)
        if found:
            reasons[one.path] += found
        if one.error or math.isinf(one.edge_px):
            suggested.add(one.path)
    return Report(len(seen), tuple(groups), {path: tuple(each) for path, each in reasons.items()}, frozenset(suggested))


def _wrong_with(one: _Seen, width: int, height: int) -> list[str]:
    if one.error:
        return [f"cannot be read: {one.error}"]
    across, down = one.size
    found = []
    if width and height and (across < width or down < height):
        found.append(f"small: {across} x {down} px")
    if math.isinf(one.edge_px):
        found.append("blank: a single color")
    elif one.edge_px > BLURRED_PX:
        found.append("blurred, or without detail")
    if max(one.size) > LONGEST * min(one.size):
        found.append(f"longer than {LONGEST:g}:1")
    return found


def _groups(part: Sequence[_Seen]) -> list[list[_Seen]]:
    """Images like the first of their group, which is the best of them."""
    if not part:
        return []
    ordered = sorted(part, key=_merit)
    bits = np.stack([one.bits for one in ordered if one.bits is not None])
    found = near_duplicates.groups(bits, np.stack([one.colours for one in ordered if one.colours is not None]))
    return sorted(([ordered[number] for number in group] for group in found), key=lambda group: group[0].path)


def _merit(one: _Seen) -> tuple[int, bool, bool, float, int, str]:
    """The best first: of the most pixels, then lossless, captioned, sharp (to a tenth of a px), and the largest file."""
    pixels, sharp = one.size[0] * one.size[1], round(one.edge_px, 1)
    return -pixels, not one.is_lossless, not one.has_caption, sharp, -one.length, one.path.name


def _is_lossless(opened: Image.Image, path: Path) -> bool:
    """Whether its format keeps every pixel as it was; asked before the pixels are read."""
    if opened.format == "TIFF":
        return opened.info.get("compression") not in ("jpeg", "tiff_jpeg", "webp")
    if opened.format == "WEBP":
        with path.open("rb") as file:
            return file.read(16)[12:] == b"VP8L"
    return opened.format in LOSSLESS


def _mirrored_copies(paths: Sequence[Path]) -> set[Path]:
    """Those named as mirrored copies of others that are there."""
    named = {path.stem + FLIPPED for path in paths}
    return {path for path in paths if path.stem in named}
