"""Images arrive upright, unsquashed, in any format, and at their full quality."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from ti_trainer.data.image_files import find_images
from ti_trainer.data.images import Frame, load_image
from ti_trainer.errors import ConfigError, DatasetError

AS_IT_IS = Frame(None)


def gradient(width: int, height: int, bands: str = "RGB") -> Image.Image:
    """Red grows to the right, green downwards, blue is 90; alpha grows to the right."""
    across = np.broadcast_to(np.linspace(0, 255, width)[None], (height, width))
    down = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    parts = [across, down, np.full((height, width), 90.0), across][: len(bands)]
    return Image.fromarray(np.stack(parts, -1).round().astype(np.uint8), bands)


def image_of(pixels: torch.Tensor) -> np.ndarray:
    """(H, W, 3) of 0 to 255."""
    return ((pixels + 1) * 127.5).permute(1, 2, 0).numpy()


def saved(folder: Path, name: str, image: Image.Image, **options: object) -> Path:
    image.save(folder / name, **options)
    return folder / name


@pytest.mark.parametrize("name", ["x.png", "x.bmp", "x.tif", "x.tga", "x.ppm", "X.PNG"])
def test_pixels_are_those_of_the_file(tmp_path: Path, name: str) -> None:
    pixels, alpha, _ = load_image(saved(tmp_path, name, gradient(24, 16)), AS_IT_IS)
    assert pixels.shape == (3, 16, 24)
    assert pixels.dtype == torch.float32
    np.testing.assert_allclose(image_of(pixels), gradient(24, 16), atol=1e-3)
    assert alpha is None


@pytest.mark.parametrize("name", ["x.jpg", "x.webp", "x.gif", "cmyk.jpg"])
def test_lossy_formats_are_read_as_what_they_show(tmp_path: Path, name: str) -> None:
    image = gradient(48, 32).convert("CMYK") if name.startswith("cmyk") else gradient(48, 32)
    pixels, *_ = load_image(saved(tmp_path, name, image), AS_IT_IS)
    assert np.abs(image_of(pixels) - np.asarray(gradient(48, 32), float)).mean() < 12


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_greys_of_16_bits_keep_their_shades(tmp_path: Path, name: str) -> None:
    shades = np.broadcast_to(np.linspace(0, 65535, 64).astype(np.uint16), (16, 64))
    pixels, *_ = load_image(saved(tmp_path, name, Image.fromarray(shades.copy())), AS_IT_IS)
    expected = np.broadcast_to(np.linspace(-1, 1, 64), (3, 16, 64))
    np.testing.assert_allclose(pixels.numpy(), expected, atol=0.01)


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    pixels, alpha, _ = load_image(saved(tmp_path, "x.png", gradient(16, 16).convert(mode)), AS_IT_IS)
    assert pixels.shape == (3, 16, 16)
    assert alpha is None


def test_a_palettes_transparency_is_alpha(tmp_path: Path) -> None:
    image = Image.new("P", (16, 8), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.paste(1, (8, 0, 16, 8))
    pixels, alpha, _ = load_image(saved(tmp_path, "x.png", image, transparency=1), Frame(None, use_alpha=True))
    assert torch.equal(alpha[0, 0], torch.tensor([1.0] * 8 + [0.0] * 8))
    assert pixels[:, 0, 0].tolist() == [1, -1, -1]


def test_alpha_goes_with_the_pixels_and_only_if_wanted(tmp_path: Path) -> None:
    path = saved(tmp_path, "x.png", gradient(32, 16, "RGBA"))
    pixels, alpha, _ = load_image(path, Frame(None, use_alpha=True))
    assert alpha.shape == (1, 16, 32)
    torch.testing.assert_close(alpha[0], (pixels[0] + 1) / 2)  # both grow to the right
    assert load_image(path, AS_IT_IS)[1] is None
    assert load_image(saved(tmp_path, "y.png", gradient(32, 16)), Frame(None, use_alpha=True))[1] is None


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [(1, None), (2, Image.Transpose.FLIP_LEFT_RIGHT), (3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_90),
     (8, Image.Transpose.ROTATE_270)],
)  # fmt: skip
def test_images_of_a_turned_camera_are_upright(tmp_path: Path, orientation: int, turn: Image.Transpose | None) -> None:
    upright = gradient(48, 32)
    stored = upright if turn is None else upright.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels, *_ = load_image(saved(tmp_path, "x.jpg", stored, quality=100, exif=exif), AS_IT_IS)
    assert pixels.shape == (3, 32, 48)
    assert np.abs(image_of(pixels) - np.asarray(upright, float)).mean() < 3


@pytest.mark.parametrize("frame", [(64, 64), (96, 48), (40, 80)])
@pytest.mark.parametrize("shape", [(200, 100), (100, 200), (150, 150)])
def test_a_circle_stays_round(tmp_path: Path, frame: tuple[int, int], shape: tuple[int, int]) -> None:
    image = Image.new("RGB", shape)
    middle, radius = (shape[0] / 2, shape[1] / 2), 18
    ImageDraw.Draw(image).ellipse(
        (middle[0] - radius, middle[1] - radius, middle[0] + radius, middle[1] + radius), fill="white"
    )
    pixels, *_ = load_image(saved(tmp_path, "x.png", image), Frame(frame))
    assert pixels.shape == (3, frame[1], frame[0])
    lit = pixels[0] > 0
    width, height = lit.any(0).sum().item(), lit.any(1).sum().item()
    assert abs(width - height) <= 1
    left, top = lit.any(0).nonzero()[0].item(), lit.any(1).nonzero()[0].item()
    assert abs(left + width / 2 - frame[0] / 2) <= 1  # and in the middle
    assert abs(top + height / 2 - frame[1] / 2) <= 1


@pytest.mark.parametrize(("size", "kept"), [((70, 53), (64, 48)), ((64, 48), (64, 48)), ((15, 8), (8, 8))])
def test_images_that_are_not_resized_are_cut_to_multiples_of_8(
    tmp_path: Path, size: tuple[int, int], kept: tuple[int, int]
) -> None:
    image = gradient(*size)
    pixels, *_ = load_image(saved(tmp_path, "x.png", image), AS_IT_IS)
    left, top = (size[0] - kept[0]) // 2, (size[1] - kept[1]) // 2
    expected = np.asarray(image, float)[top : top + kept[1], left : left + kept[0]]
    np.testing.assert_allclose(image_of(pixels), expected, atol=1e-3)


def test_what_is_smaller_than_a_block_cannot_be_kept(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="20 x 7 px; at least 8 x 8"):
        load_image(saved(tmp_path, "x.png", gradient(20, 7)), AS_IT_IS)


@pytest.mark.parametrize(("stored", "orientation"), [((1600, 1200), 1), ((2400, 400), 6)])
def test_reading_large_jpegs_fast_costs_no_quality(tmp_path: Path, stored: tuple[int, int], orientation: int) -> None:
    """JPEGs are decoded at a fraction of their size: the result is as sharp as that from the whole image."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (stored[1] // 8, stored[0] // 8, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    jpeg = saved(tmp_path, "x.jpg", coarse.resize(stored, Image.Resampling.BICUBIC), quality=98, subsampling=0, exif=exif)
    with Image.open(jpeg) as opened:
        png = saved(tmp_path, "x.png", opened.convert("RGB"), exif=exif)
    frame = Frame((160, 16))
    fast, whole = load_image(jpeg, frame)[0], load_image(png, frame)[0]
    assert (fast - whole).abs().mean() < 0.02
    assert fast.std() == pytest.approx(whole.std().item(), rel=0.02)


def test_images_are_found_by_name_whatever_their_format(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "c.webp", "d.txt", ".hidden.png", "e.safetensors", "f.pdf", "g.jpeg"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    assert [path.name for path in find_images(tmp_path)] == ["a.jpg", "b.PNG", "c.webp", "g.jpeg"]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(DatasetError, match="There are no images in"):
        find_images(tmp_path)
    with pytest.raises(DatasetError, match="does not exist"):
        find_images(tmp_path / "nowhere")


def test_a_folder_of_what_cannot_be_used_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    for name in ("a.cr2", "more/a.png"):
        (tmp_path / name).touch()
    with pytest.raises(DatasetError, match=r"no images in .*1 \.cr2 file\. Raw photos.*not used: more \(1 image\)"):
        find_images(tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("01.png", "is a file, but a dataset is a folder"),
        ("a.ZIP", "is an archive"),
        ("a.pt", "is a file, but not a dataset file"),
    ],
)
def test_a_file_in_the_place_of_a_folder_is_called_one(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(DatasetError, match=said):
        find_images(tmp_path / name)


def test_an_address_on_the_web_is_called_one() -> None:
    with pytest.raises(DatasetError, match="is a web address"):
        find_images(Path("https://example.org/images"))


SHAPES = [(100, 100), (300, 200), (200, 300), (640, 360), (333, 777), (1000, 250), (97, 501)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", [128, 512])
def test_a_circle_stays_round_in_its_bucket_and_the_bucket_has_about_the_shape(
    tmp_path: Path, shape: tuple[int, int], side: int
) -> None:
    large = (shape[0] * 4, shape[1] * 4)
    radius, (x, y) = min(large) * 0.3, (large[0] / 2, large[1] / 2)
    image = Image.new("RGB", large)
    ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), fill="white")
    pixels, *_ = load_image(saved(tmp_path, "x.png", image), Frame((side, side), buckets=True))
    _, height, width = pixels.shape
    assert (width % 64, height % 64) == (0, 0)
    assert width * height <= side * side
    lit = (pixels[0] + 1) / 2
    across, down = lit.sum(1).max().item(), lit.sum(0).max().item()  # diameters, parts of pixels counted
    assert across == pytest.approx(down, rel=0.02)
    if 0.5 <= shape[0] / shape[1] <= 2 and side == 512:  # little of it is cut off
        assert width / height == pytest.approx(shape[0] / shape[1], rel=0.2)


def test_buckets_need_a_size_and_room() -> None:
    for size in (None, (32, 64)):
        with pytest.raises(ConfigError, match="expected 64 x 64 px or more"):
            Frame(size, buckets=True)
    Frame((64, 64), buckets=True)
