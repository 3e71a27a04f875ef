"""Images are read one at a time and kept as latents: many need little more memory than ten."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="peak memory is in kB on Linux only")
MEASURED = """
import resource, sys
from ti_trainer.__main__ import main
code = main(sys.argv[1:])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(code)
"""


def dataset(folder: Path, count: int) -> Path:
    """JPEGs of 512 px under `count` names: each is 0.75 MB as bytes, 3 MB as floats."""
    folder.mkdir()
    axis = np.linspace(0, 255, 512, dtype=np.uint8)
    Image.fromarray(np.stack(np.broadcast_arrays(axis[:, None], axis, axis[::-1]), -1)).save(folder / "0000.jpg", quality=90)
    for number in range(1, count):
        os.link(folder / "0000.jpg", folder / f"{number:04}.jpg")
    return folder


def test_150_images_more_need_little_more_memory(run: Callable[..., object], word: Path, tmp_path: Path) -> None:
    peaks_mb = []
    for count in (10, 160):
        images = dataset(tmp_path / str(count), count)
        flags = ("--max-steps", 2, "--preview-every", 0, "--batch-size", 2, "--embeddings-dir", tmp_path / f"words {count}")
        (tmp_path / f"words {count}").mkdir()
        (tmp_path / f"words {count}" / word.name).write_bytes(word.read_bytes())
        outcome = run("train", "thing", "--images", images, *flags, python=("-c", MEASURED))
        assert outcome.code == 0, outcome
        assert f"on {count} images" in outcome.out
        peaks_mb.append(int(outcome.out.rsplit("peak ", 1)[1]) / 1024)
    assert peaks_mb[1] - peaks_mb[0] < 50, peaks_mb
