"""Images are held upright in every format that knows how they lie; and masks beside images are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from ti_trainer.data.image_files import find_images
from ti_trainer.data.listing import images_among
from ti_trainer.data.mask_names import without_masks
from ti_trainer.data.upright import ORIENTATION, upright, upright_size
from ti_trainer.errors import DatasetError

SIZE = (48, 64)  # upright
LAID = {  # what undoes each orientation, so that a file of it shows the image upright
    1: lambda image: image,
    2: ImageOps.mirror,
    3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
    4: ImageOps.flip,
    5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
    7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
}
SAVING: dict[str, dict[str, Any]] = {
    "plain.tif": {},
    "lzw.tif": {"compression": "tiff_lzw"},
    "jpeg.tif": {"compression": "jpeg", "quality": 98},
    "x.jpg": {"quality": 98, "subsampling": 0},
    "x.png": {},
    "x.webp": {"lossless": True},
    "x.mpo": {"quality": 98, "subsampling": 0, "save_all": True, "append_images": [Image.new("RGB", (48, 64))]},
}


def quarters(size: tuple[int, int] = SIZE) -> Image.Image:
    """Each of another colour, so that no two orientations look alike."""
    image, (width, height) = Image.new("RGB", size, "black"), size
    image.paste("red", (0, 0, width // 2, height // 2))
    image.paste("lime", (width // 2, 0, width, height // 2))
    image.paste("blue", (0, height // 2, width // 2, height))
    return image


def laid(folder: Path, name: str, orientation: int, size: tuple[int, int] = SIZE) -> Path:
    """A file of the image as a camera writes it that was held so."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = LAID[orientation](quarters(size))
    how = {"tiffinfo": {ORIENTATION: orientation}} if name.endswith(".tif") else {"exif": exif}
    image.save(folder / name, **how, **SAVING[name])
    return folder / name


@pytest.mark.parametrize("orientation", LAID)
@pytest.mark.parametrize("name", SAVING)
def test_every_image_is_held_upright(tmp_path: Path, name: str, orientation: int) -> None:
    path = laid(tmp_path, name, orientation)
    for at_least in (None, SIZE):
        with Image.open(path) as opened:
            assert upright_size(opened) == SIZE
            image = upright(opened, at_least)
            assert image.size == SIZE
            assert upright_size(image) == SIZE, "it is not turned again"
        apart = np.abs(np.asarray(image.convert("RGB"), int) - np.asarray(quarters(), int))
        assert apart.mean() < 6


@pytest.mark.parametrize("orientation", LAID)
@pytest.mark.parametrize("name", SAVING)
def test_a_size_is_the_same_after_the_pixels_were_read(tmp_path: Path, name: str, orientation: int) -> None:
    with Image.open(laid(tmp_path, name, orientation)) as opened:
        opened.load()
        assert upright_size(opened) == SIZE
        assert upright(opened).size == SIZE


@pytest.mark.parametrize("orientation", LAID)
@pytest.mark.parametrize("name", SAVING)
def test_a_large_one_is_read_no_smaller_than_asked_for_and_upright(tmp_path: Path, name: str, orientation: int) -> None:
    size = (480, 640)
    with Image.open(laid(tmp_path, name, orientation, size)) as opened:
        assert upright_size(opened) == size
        image = upright(opened, (120, 160))
    assert image.size == ((120, 160) if name.endswith((".jpg", ".mpo")) else size)
    apart = np.abs(np.asarray(image.convert("RGB"), int) - np.asarray(quarters(image.size), int))
    assert apart.mean() < 6


def test_masks_beside_a_image_are_no_images(tmp_path: Path) -> None:
    for name in ("a.jpg", "a_att.png", "a-masklabel.webp", "b_att.png", "c-masklabel.png", "a2_att.png", ".a.png", "a.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in find_images(tmp_path)] == ["a.jpg"]


def test_a_mask_belongs_to_a_image_of_its_own_folder(tmp_path: Path) -> None:
    names = (
        "one/a.png",
        "one/a_att.png",
        "one/b_mask.png",
        "two/a_att.png",
        "two/b.tiff",
        "two/b-masklabel.png",
        "two/.b.png",
        "two/b.txt",
    )
    paths = [tmp_path / name for name in reversed(names)]
    assert images_among(paths) == [tmp_path / name for name in ("one/a.png", "one/b_mask.png", "two/b.tiff")]
    assert without_masks(paths[-2:]) == [tmp_path / "one/a.png"]
    assert images_among([]) == []


def test_a_folder_of_nothing_but_a_hidden_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".a.png").touch()
    with pytest.raises(DatasetError, match="no images"):
        find_images(tmp_path)
