"""What cannot be opened is told in one line; what is transparent is white wherever an image is looked at."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ti_trainer.data.images import Frame, load_image
from ti_trainer.data.masks import read_mask
from ti_trainer.data.open_image import LARGEST_PX, is_transparent, on_white, opened_image
from ti_trainer.data.upright import upright
from ti_trainer.errors import DatasetError

SIZE = (64, 64)


def hidden() -> np.ndarray:
    """Noise under alpha 0, and in the middle a square that is to be seen."""
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[..., :3] = np.random.default_rng(0).integers(0, 255, (64, 64, 3))
    pixels[16:48, 16:48] = (200, 30, 30, 255)
    return pixels


def palette() -> Image.Image:
    image = Image.new("P", SIZE, 1)
    image.putpalette([200, 30, 30, 10, 250, 10])
    image.paste(0, (16, 16, 48, 48))
    return image


def sixteen() -> Image.Image:
    grey = np.full((64, 64), 30000, np.uint16)
    grey[16:48, 16:48] = 20000
    return Image.fromarray(grey).convert("I")  # older Pillows write no key for I;16


def keyed(mode: str, seen: object, out: object) -> Image.Image:
    image = Image.new(mode, SIZE, out)
    image.paste(seen, (16, 16, 48, 48))
    return image


TRANSPARENT = {
    "rgba.png": (lambda: Image.fromarray(hidden()), {}),
    "rgba.webp": (lambda: Image.fromarray(hidden()), {"lossless": True, "exact": True}),
    "rgba.tif": (lambda: Image.fromarray(hidden()), {}),
    "la.png": (lambda: Image.fromarray(hidden()[..., [0, 3]], "LA"), {}),
    "p-one.png": (palette, {"transparency": 1}),
    "p-several.png": (palette, {"transparency": bytes([255, 0])}),
    "p.gif": (palette, {"transparency": 1}),
    "l-key.png": (lambda: keyed("L", 40, 90), {"transparency": 90}),
    "rgb-key.png": (lambda: keyed("RGB", (200, 30, 30), (10, 250, 10)), {"transparency": (10, 250, 10)}),
    "16-key.png": (sixteen, {"transparency": 30000}),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", TRANSPARENT)
def test_what_is_transparent_is_white_in_training(tmp_path: Path, name: str) -> None:
    make, how = TRANSPARENT[name]
    make().save(tmp_path / name, **how)
    pixels = load_image(tmp_path / name, Frame(SIZE)).pixels
    assert (pixels[:, :12, :12] == 1).all()
    assert pixels[:, 30:34, 30:34].max() < 0.9
    with opened_image(tmp_path / name) as opened:
        assert is_transparent(opened)


def test_what_is_opaque_is_trained_on_as_ever(tmp_path: Path) -> None:
    rgb = np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(rgb).save(tmp_path / "rgb.png")
    Image.fromarray(np.dstack([rgb, np.full((64, 64), 255, np.uint8)])).save(tmp_path / "rgba.png")
    first, second = (load_image(tmp_path / name, Frame(SIZE)).pixels for name in ("rgb.png", "rgba.png"))
    assert first.equal(second)
    for name in ("rgb.png", "rgba.png"):
        with opened_image(tmp_path / name) as opened:
            assert not is_transparent(opened)


def test_alpha_as_a_weight_leaves_the_colours_as_they_are_and_a_mask_does_not(tmp_path: Path) -> None:
    Image.fromarray(hidden()).save(tmp_path / "a.png")
    weighed = load_image(tmp_path / "a.png", Frame(SIZE, use_alpha=True))
    assert weighed.pixels[:, :8, :8].std() > 0.1
    assert weighed.counts[0, 0, 0] == 0
    Image.new("L", SIZE, 255).save(tmp_path / "a_att.png")
    masked = load_image(tmp_path / "a.png", Frame(SIZE, use_alpha=True), tmp_path / "a_att.png")
    assert (masked.pixels[:, :8, :8] == 1).all()


def test_what_is_transparent_in_a_mask_marks_nothing(tmp_path: Path) -> None:
    Image.fromarray(np.full((64, 64, 4), (255, 255, 255, 0), np.uint8)).save(tmp_path / "a_att.png")
    assert read_mask(tmp_path / "a_att.png", SIZE).getextrema() == (0, 0)


def png(width: int, height: int) -> bytes:
    """The smallest that says it has this size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (bytes(900), "it is damaged: it begins with nothing but zeros"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "a web page"),
        (b"\0\0\0 ftypisom" + bytes(64), "a video"),
        (b"\0\0\0 ftypheic" + bytes(64), "it is damaged|needs the package"),
        (b"\xff\x0a" + bytes(64), "it is damaged|needs the package"),
        (b"something else", "it is not an image, or damaged"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n", "it is not an image, or damaged"),
        (png(30000, 30000), "it is too large: found 900,000,000 px"),
        (png(14000, 14000), "it is too large: found 14000 x 14000 px|found 196,000,000 px"),
        (png(64, 64), "it is damaged: "),
    ],
)
def test_each_is_told_in_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DatasetError, match=said) as found:
        load_image(tmp_path / "a.png", Frame(SIZE))
    assert "\n" not in str(found.value)
    assert str(tmp_path) not in str(found.value)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "gif", "tif", "bmp"])
def test_one_that_ends_too_early_is_damaged(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    Image.fromarray(hidden()[..., :3]).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DatasetError, match=r"^it is (damaged|not an image, or damaged)"):
        load_image(path, Frame(SIZE))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a Windows without named pipes")
def test_a_pipe_does_not_keep_us_waiting_nor_does_a_link_to_itself(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "itself.png").symlink_to(tmp_path / "itself.png")
    (tmp_path / "folder.png").mkdir()
    for name, said in (("pipe.png", "a pipe"), ("itself.png", "cannot be opened"), ("folder.png", "a folder")):
        with pytest.raises(DatasetError, match=said), opened_image(tmp_path / name):
            pass


def test_a_host_may_have_switched_off_the_limit_of_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    (tmp_path / "a.png").write_bytes(png(30000, 30000))
    with pytest.raises(DatasetError, match=f"expected at most {LARGEST_PX:,} px"), opened_image(tmp_path / "a.png"):
        pass


@pytest.mark.parametrize("ending", ["gif", "png", "webp"])
def test_of_an_animation_the_first_frame_counts(tmp_path: Path, ending: str) -> None:
    frames = [Image.new("RGB", SIZE, colour) for colour in ("red", "blue", "green")]
    frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:])
    with opened_image(tmp_path / f"a.{ending}") as opened:
        assert opened.n_frames == 3
        assert on_white(upright(opened)).getpixel((5, 5)) == pytest.approx((255, 0, 0), abs=5)


@pytest.mark.parametrize("scale", [1, 255])
def test_greys_of_32_bits_and_inks_are_brought_to_8_bits(tmp_path: Path, scale: int) -> None:
    slope = np.linspace(0, scale, 64 * 64, dtype=np.float32).reshape(64, 64)
    Image.fromarray(slope).save(tmp_path / "a.tif")
    found = np.asarray(load_image(tmp_path / "a.tif", Frame(SIZE)).pixels[0])
    assert np.abs(found - (slope / scale * 2 - 1)).max() < 0.02
    Image.new("CMYK", SIZE, (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    assert load_image(tmp_path / "a.jpg", Frame(SIZE)).pixels[:, 5, 5].tolist() == pytest.approx([1, -1, -1], abs=0.1)
