"""preprocess: from photos to a dataset, interrupted, killed and continued."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ti_trainer.preprocess.manifest import FILE

COUNT = 24


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    noise = np.random.default_rng(0).integers(0, 255, (900, 1200, 3), np.uint8)
    Image.fromarray(noise).save(folder / "000.jpg")
    for number in range(1, COUNT):
        shutil.copy(folder / "000.jpg", folder / f"{number:03}.jpg")
    return folder


def whole_images(folder: Path) -> int:
    """How many there are; each can be read to its end."""
    made = sorted(folder.glob("*.png"))
    for path in made:
        with Image.open(path) as image:
            image.load()
            assert image.size == (512, 512)
    return len(made)


def hidden(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.glob(".*") if each.name != FILE)


def test_photos_become_a_dataset(photos: Path, cli: Callable, tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    for name in ("000.jpg", "001.jpg"):
        shutil.copy(photos / name, tmp_path / "some")
    (tmp_path / "some" / "broken.jpg").write_bytes(b"nothing")
    done = cli("preprocess", "some", "made", "--flip", "--split", "--split-threshold", "0.8")
    assert done.code == 0, done.err
    assert whole_images(tmp_path / "made") == 8
    assert "Made 8 images from 2 source images" in done.out
    assert "broken.jpg: it is not an image, or damaged" in done.err
    assert 'train NAME --images "made"' in done.out


def test_a_preview_is_one_image_and_nothing_else(photos: Path, cli: Callable, tmp_path: Path) -> None:
    done = cli("preprocess", photos, "made", "--resize", "buckets", "--preview", "preview.png")
    assert done.code == 0, done.err
    assert sorted(each.name for each in tmp_path.iterdir()) == ["preview.png"]
    with Image.open(tmp_path / "preview.png") as sheet:
        assert sheet.height > 1000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere", "made"), "does not exist"),
        (("photos", "photos"), "the same as the destination"),
        (("photos", "."), "inside the destination"),
        (("photos", "made", "--width", "500"), "multiple of 8"),
        (("photos", "made", "--captioners", "wd41"), "wd14"),
        (("photos", "made", "--captioners", "wd14"), "selected_tags.csv"),
        (("photos", "made", "--keep-alpha", "--format", "jpg"), "png or webp"),
    ],
)
def test_an_error_is_one_line(photos: Path, cli: Callable, tmp_path: Path, arguments: tuple, said: str) -> None:
    (tmp_path / "photos").mkdir()
    shutil.copy(photos / "000.jpg", tmp_path / "photos")
    done = cli("preprocess", *arguments)
    assert done.code == 1
    assert len(done.errors) == 1
    assert said in done.errors[0]
    assert not list((tmp_path / "made").glob("*.png"))


@pytest.mark.parametrize("name", ["preview", "preview.txt", "preview.gz"])
def test_a_preview_that_is_no_image_is_refused_before_any_work(
    photos: Path, cli: Callable, tmp_path: Path, name: str
) -> None:
    done = cli("preprocess", photos, "made", "--resize", "focal", "--preview", name)
    assert done.code == 1
    assert done.errors == [f"Error: Preview: found the file name '{name}', expected one that ends in .png or .jpg."]
    assert done.out == ""  # not even which face detector there is
    assert not list(tmp_path.iterdir())


def test_an_unknown_captioner_is_refused_before_any_work(photos: Path, cli: Callable, tmp_path: Path) -> None:
    done = cli("preprocess", photos, "made", "--resize", "focal", "--captioners", "blip, wd41")
    assert done.code == 1
    assert len(done.errors) == 1
    assert "found wd41, expected names from" in done.errors[0]
    assert done.out == ""
    assert not list(tmp_path.iterdir())


def test_a_jpeg_can_be_the_preview(photos: Path, cli: Callable, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    shutil.copy(photos / "000.jpg", tmp_path / "one" / "写真.jpg")
    done = cli("preprocess", "one", "made", "--preview", "preview.JPG")
    assert done.code == 0, done.err
    with Image.open(tmp_path / "preview.JPG") as sheet:
        assert sheet.format == "JPEG"


@pytest.mark.skipif(os.name == "nt", reason="signals are not like that on Windows")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_or_killed_it_continues(photos: Path, start: Callable, cli: Callable, tmp_path: Path, how: int) -> None:
    process: subprocess.Popen[str] = start("preprocess", photos, "made", "--flip", cwd=tmp_path)
    until = time.monotonic() + 120
    while len(list(tmp_path.glob("made/*.png"))) < 4:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.005)
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    time.sleep(0.5)  # workers of a killed process finish what they have
    before = whole_images(tmp_path / "made")
    assert 4 <= before < 2 * COUNT
    if how != signal.SIGKILL:
        assert process.returncode == 130, err
        assert before % 2 == 0
        assert hidden(tmp_path / "made") == []
    done = cli("preprocess", photos, "made", "--flip")
    assert done.code == 0, done.err
    assert whole_images(tmp_path / "made") == 2 * COUNT
    assert hidden(tmp_path / "made") == []
    again = cli("preprocess", photos, "made", "--flip")
    assert f"the same options: {COUNT} source images" in again.out
    assert whole_images(tmp_path / "made") == 2 * COUNT
