"""HEIC, AVIF and JPEG XL are read where their packages are, and asked for by name where not."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from ti_trainer.data import image_formats
from ti_trainer.data.image_formats import how_to_read, image_endings, install_command, readable_formats
from ti_trainer.data.images import Frame, load_image
from ti_trainer.data.jxl_header import jxl_size
from ti_trainer.data.masks import read_mask
from ti_trainer.data.open_image import is_transparent, on_white, opened_image
from ti_trainer.data.upright import ORIENTATION, upright, upright_size
from ti_trainer.errors import DatasetError

pytest.importorskip("pillow_heif")
pytest.importorskip("pillow_jxl")
readable_formats()  # registers them: files are written here as well

SIZE = (64, 48)


def halves(size: tuple[int, int] = SIZE) -> Image.Image:
    """Red above, blue below."""
    image = Image.new("RGB", size, "red")
    image.paste("blue", (0, size[1] // 2, *size))
    return image


def turned_exif() -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return exif.tobytes()


def read(path: Path) -> Image.Image:
    with opened_image(path) as opened:
        size = upright_size(opened)
        image = upright(opened)
    assert image.size == size == upright_size(image), "it is not turned again"
    return on_white(image)


def is_like(found: Image.Image, wanted: Image.Image) -> bool:
    return found.size == wanted.size and np.abs(np.asarray(found, int) - np.asarray(wanted, int)).mean() < 6


@pytest.mark.parametrize("name", ["a.heic", "a.HEIF", "a.jxl", "a.avif"])
def test_they_are_read_to_be_trained_on(tmp_path: Path, name: str) -> None:
    if ".avif" in name and ".avif" not in image_endings():
        pytest.skip("neither Pillow nor pillow-heif has AVIF here")
    halves().save(tmp_path / name, quality=95)
    assert is_like(read(tmp_path / name), halves())
    pixels = load_image(tmp_path / name, Frame((64, 48))).pixels
    assert pixels[0, 8].mean() > 0.9
    assert pixels[2, -8].mean() > 0.9
    assert read_mask(tmp_path / name, SIZE).getpixel((5, 5)) == pytest.approx(76, abs=3)


def test_a_heic_that_lies_on_its_side_is_turned_once(tmp_path: Path) -> None:
    """A camera writes both: how the decoder turns it, and EXIF, which must not turn it again."""
    lying = halves().transpose(Image.Transpose.ROTATE_90)
    lying.info["exif"] = turned_exif()  # pillow-heif writes `irot` of this
    lying.save(tmp_path / "a.heic", quality=95)
    assert b"irot" in (tmp_path / "a.heic").read_bytes()
    assert is_like(read(tmp_path / "a.heic"), halves())


def test_a_jxl_is_turned_by_its_decoder_and_a_repacked_jpeg_by_exif(tmp_path: Path) -> None:
    halves().save(tmp_path / "plain.jxl", lossless=True, exif=turned_exif())
    assert is_like(read(tmp_path / "plain.jxl"), halves())
    halves().transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.jpg", quality=95, exif=turned_exif())
    with Image.open(tmp_path / "a.jpg") as jpeg:
        jpeg.save(tmp_path / "repacked.jxl", lossless_jpeg=True)
    assert is_like(read(tmp_path / "repacked.jxl"), halves())


@pytest.mark.parametrize("name", ["a.heic", "a.jxl"])
def test_greys_of_16_bits_keep_their_range_and_what_is_transparent_is_white(tmp_path: Path, name: str) -> None:
    grey = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / name, lossless=True, quality=-1)
    found = np.asarray(read(tmp_path / name).convert("L"), float)
    assert np.abs(found - grey / 257).mean() < 2
    cut_out = halves().convert("RGBA")
    cut_out.putalpha(0)
    cut_out.paste((200, 30, 30, 255), (16, 16, 32, 32))
    cut_out.save(tmp_path / name, lossless=True, quality=-1)
    with opened_image(tmp_path / name) as opened:
        assert is_transparent(opened)
    assert read(tmp_path / name).getpixel((2, 2)) == (255, 255, 255)
    assert read(tmp_path / name).getpixel((20, 20)) == pytest.approx((200, 30, 30), abs=6)


def test_of_several_images_in_a_heic_the_primary_one_counts(tmp_path: Path) -> None:
    import pillow_heif

    several = pillow_heif.from_pillow(Image.new("RGB", (64, 64), "green"))
    several.add_from_pillow(halves())
    several.save(tmp_path / "a.heic", quality=95, primary_index=1)
    assert is_like(read(tmp_path / "a.heic"), halves())


def test_what_a_file_is_its_content_says(tmp_path: Path) -> None:
    halves().save(tmp_path / "a.heic", quality=95)
    (tmp_path / "a.heic").rename(tmp_path / "a.jpg")
    assert is_like(read(tmp_path / "a.jpg"), halves())


@pytest.mark.parametrize("size", [(64, 48), (256, 256), (1, 1), (513, 77), (8, 2000), (1600, 900), (1000, 500), (40000, 3)])
@pytest.mark.parametrize("how", [{}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}])
def test_a_jxl_says_how_large_it_is_before_it_is_decoded(tmp_path: Path, size: tuple[int, int], how: dict) -> None:
    Image.new("L", size, 90).save(tmp_path / "a.jxl", effort=1, **how)
    assert (tmp_path / "a.jxl").read_bytes().startswith(b"\xff\x0a") == (not how)
    assert jxl_size(tmp_path / "a.jxl") == size


def test_a_gigantic_jxl_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    """Its header says 2**30 x 2**30 px: selector 3 and 30 bits of ones, no ratio, and the same again."""
    bits = (0b11 << 1) | ((1 << 30) - 1) << 3 | (0b11 << 36) | ((1 << 30) - 1) << 38
    (tmp_path / "a.png").write_bytes(b"\xff\x0a" + bits.to_bytes(16, "little"))
    with pytest.raises(DatasetError, match=f"too large: found {1 << 30} x {1 << 30} px"), opened_image(tmp_path / "a.png"):
        pass


@pytest.mark.usefixtures("without_image_plugins")
@pytest.mark.parametrize(("ending", "package"), [(".heic", "pillow-heif"), (".jxl", "pillow-jxl-plugin")])
def test_without_their_package_it_is_asked_for_by_name(tmp_path: Path, ending: str, package: str) -> None:
    halves().save(tmp_path / f"a{ending}")
    assert ending not in image_endings()
    wanted = f"{ending[1:].upper()} needs the package {package}, which is not installed: {sys.executable} -m pip install "
    assert how_to_read(ending.upper()) == f"{wanted}{package} pillow=={PIL.__version__}"
    (tmp_path / f"a{ending}").rename(tmp_path / "a.png")
    with pytest.raises(DatasetError, match=f"needs the package {package}"), opened_image(tmp_path / "a.png"):
        pass


@pytest.mark.usefixtures("without_image_plugins")
def test_avif_needs_a_package_only_before_pillow_reads_it_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_formats, "image_endings", lambda: frozenset({".png"}))
    monkeypatch.setattr(PIL, "__version__", "11.2.1")
    assert "-m pip install 'pillow-heif~=0.16' pillow==11.2.1" in how_to_read(".avif").replace('"', "'")
    monkeypatch.setattr(PIL, "__version__", "11.3.0")
    assert how_to_read(".avif") == ""


def test_a_command_can_be_pasted_where_python_lies_in_a_folder_with_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "executable", "/home/me/my apps/venv/bin/python")
    monkeypatch.setattr(PIL, "__version__", "10.0")
    assert install_command("x") == "'/home/me/my apps/venv/bin/python' -m pip install x pillow==10.0"
    monkeypatch.setattr(sys, "executable", r"C:\My apps\python.exe")
    monkeypatch.setattr(sys, "platform", "win32")
    assert install_command("x") == r'"C:\My apps\python.exe" -m pip install x pillow==10.0'


def test_what_can_be_read_or_never_is_needs_nothing() -> None:
    assert {how_to_read(ending) for ending in (".png", ".heic", ".jxl", ".txt", ".eps")} == {""}
    assert {".png", ".jpg", ".webp", ".heic", ".hif", ".jxl"} <= image_endings()
    assert not {".eps", ".pdf", ".mpg", ".h5", ".txt"} & image_endings()
