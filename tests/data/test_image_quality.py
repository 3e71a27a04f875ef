"""Images alike, small, blurred, long and unreadable are found, good ones are not; leaving out loses nothing."""

from __future__ import annotations

import functools
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

pytest.importorskip("imagehash")

from ti_trainer.data import image_quality, near_duplicates
from ti_trainer.data.image_quality import BLURRED_PX, Report, check, edge_width
from ti_trainer.data.left_out import bring_back, leave_out
from ti_trainer.data.listing import LEFT_OUT
from ti_trainer.errors import DatasetError, StoppedError

SIZE = (640, 600)


@functools.cache
def scene(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    """Like a photo, as far as structure goes: a sky, things of all sizes before it, light from one side and a fine grain."""
    rng = np.random.default_rng(seed)
    top, bottom = rng.integers(40, 220, (2, 3))
    slope = np.linspace(0, 1, size[1])[:, None, None]
    pixels = np.broadcast_to(top * (1 - slope) + bottom * slope, (size[1], size[0], 3))
    image = Image.fromarray(pixels.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(25):
        x, y = rng.integers(0, size[0]), rng.integers(0, size[1])
        w, h = (rng.exponential(0.12, 2) * min(size)).astype(int) + 4
        colour = tuple(int(each) for each in rng.integers(0, 256, 3))
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)((x - w, y - h, x + w, y + h), fill=colour)
    grain = rng.normal(0, 3, (size[1], size[0], 1))
    return Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8))


def trimmed(image: Image.Image, share: float) -> Image.Image:
    across, down = (round(side * share) for side in image.size)
    return image.crop((across, down, image.width - across, image.height - down))


SAME: dict[str, Callable[[Image.Image], Image.Image]] = {
    "smaller": lambda image: image.resize((320, 300)),
    "a third": lambda image: image.resize((213, 200)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.3),
    "trimmed": lambda image: trimmed(image, 0.015),
}


def folder_of(folder: Path, **images: Image.Image) -> Path:
    for stem, image in images.items():
        image.save(folder / f"{stem.replace('_', '-')}.png", compress_level=1)
    return folder


def said(report: Report) -> dict[str, str]:
    return {path.name: "; ".join(reasons) for path, reasons in report.reasons.items()}


def names(paths: object) -> list[str]:
    return [path.name for path in paths]


def test_good_images_have_no_warnings(tmp_path: Path) -> None:
    seen = []
    report = check(
        folder_of(tmp_path, **{f"n{seed}": scene(seed) for seed in range(12)}),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert (report.count, report.alike, said(report)) == (12, (), {})
    assert seen == [(number, 12) for number in range(1, 13)]


@pytest.mark.parametrize("how", SAME)
def test_an_image_that_was_changed_a_little_is_nearly_the_same(tmp_path: Path, how: str) -> None:
    found = []
    for seed in range(2):
        folder = tmp_path / str(seed)
        folder.mkdir()
        report = check(folder_of(folder, a=scene(seed), b=SAME[how](scene(seed)), c=scene(100 + seed)))
        assert "c.png" not in {path.name for group in report.alike for path in group}
        found.append(bool(report.alike))
    assert all(found)


def test_saved_again_as_jpeg_is_nearly_the_same_and_the_better_one_is_kept(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, x=scene(3), other=scene(4))
    scene(3).resize((1280, 1200)).save(folder / "large.jpg", quality=90)
    scene(3).save(folder / "poor.jpg", quality=30)
    report = check(folder)
    assert [names(group) for group in report.alike] == [["large.jpg", "x.png", "poor.jpg"]]
    assert said(report) == {
        "large.jpg": "the best of 3 alike",
        "x.png": "nearly the same as large.jpg",
        "poor.jpg": "nearly the same as large.jpg",
    }
    assert sorted(names(report.suggested)) == ["poor.jpg", "x.png"]


def test_copies_of_a_file_are_called_so_and_the_captioned_one_is_kept(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, a=scene(1), b=scene(1), z=scene(2))
    (folder / "b.txt").write_text("a caption", encoding="utf-8")
    assert said(check(folder)) == {"b.png": "the best of 2 alike", "a.png": "the same file as b.png"}


def test_other_colours_make_another_image(tmp_path: Path) -> None:
    grey, blue, red = scene(5).convert("YCbCr").split()
    other = Image.merge("YCbCr", (grey, red, blue)).convert("RGB")  # as light and dark as before
    assert check(folder_of(tmp_path, a=scene(5), b=other)).alike == ()


def test_mirrored_copies_that_are_named_so_are_wanted(tmp_path: Path) -> None:
    half = scene(6).crop((0, 0, 320, 600))
    both_sides = Image.new("RGB", SIZE)
    both_sides.paste(half, (0, 0))
    both_sides.paste(ImageOps.mirror(half), (320, 0))
    folder = folder_of(tmp_path, a=both_sides, a_flipped=ImageOps.mirror(both_sides))
    assert said(check(folder)) == {}
    (folder / "a-flipped.png").rename(folder / "b.png")
    assert said(check(folder)) == {"a.png": "the best of 2 alike", "b.png": "the same file as a.png"}


def test_mirrored_copies_of_images_that_are_alike_are_so_too(tmp_path: Path) -> None:
    twice = {"a": scene(7), "b": SAME["smaller"](scene(7))}
    folder = folder_of(tmp_path, **twice, **{f"{stem}_flipped": ImageOps.mirror(each) for stem, each in twice.items()})
    assert [names(group) for group in check(folder).alike] == [["a.png", "b.png"], ["a-flipped.png", "b-flipped.png"]]


def test_small_and_long_images_are_found(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, small=scene(1, (500, 700)), long=scene(2, (1300, 600)), just=scene(3, (1200, 600)))
    assert said(check(folder)) == {
        "small.png": "small: 500 x 700 px",
        "long.png": "longer than 2:1",
    }
    assert set(said(check(folder, 0, 0))) == {"long.png"}
    assert "small.png" not in said(check(folder, 448, 640))
    assert check(folder).suggested == frozenset()


def test_an_image_of_one_pixel_is_blank(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, good=scene(1, (700, 700)), one=Image.new("RGB", (1, 1)))
    assert said(check(folder)) == {"one.png": "small: 1 x 1 px; blank: a single color"}
    assert check(folder).suggested == {folder / "one.png"}


def test_a_photo_that_lies_on_its_side_has_its_size_upright(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    scene(1, (800, 600)).save(tmp_path / "a.jpg", exif=turned)
    assert said(check(tmp_path, 700, 512)) == {"a.jpg": "small: 600 x 800 px"}


@pytest.mark.parametrize("seed", range(6))
def test_blur_is_told_from_sharpness_whatever_the_contrast(seed: int) -> None:
    """Sharp ones stay well below the threshold, blurred ones above; contrast, noise and a soft background do not matter."""

    def width(image: Image.Image) -> float:
        return edge_width(np.asarray(image.convert("L"), np.float32))

    sharp = scene(seed)
    soft = sharp.filter(ImageFilter.GaussianBlur(2.5))
    assert width(sharp) < 0.7 * BLURRED_PX < 1.1 * BLURRED_PX < width(soft)
    assert width(ImageEnhance.Contrast(sharp).enhance(0.3)) < BLURRED_PX < width(ImageEnhance.Contrast(soft).enhance(0.5))
    in_focus = Image.new("L", SIZE)
    in_focus.paste(255, (220, 200, 420, 400))
    assert width(Image.composite(sharp, sharp.filter(ImageFilter.GaussianBlur(8)), in_focus)) < BLURRED_PX


def test_blurred_images_are_found_at_the_size_they_are_trained_on(tmp_path: Path) -> None:
    large = scene(1, (1280, 1200))
    folder = folder_of(
        tmp_path,
        sharp=large,
        fine=scene(2, (1280, 1200)).filter(ImageFilter.GaussianBlur(1.2)),  # half a pixel at 512
        soft=scene(3, (1280, 1200)).filter(ImageFilter.GaussianBlur(7)),
        flat=Image.new("RGB", SIZE, (90, 120, 150)),
    )
    report = check(folder)
    assert [path.name for path in report.suggested] == ["flat.png"]
    assert said(report) == {"soft.png": "blurred, or without detail", "flat.png": "blank: a single color"}


def test_images_that_cannot_be_read_are_named_with_the_reason(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, good=scene(1))
    (folder / "text.png").write_bytes(b"no image")
    scene(2).save(folder / "half.jpg")
    (folder / "half.jpg").write_bytes((folder / "half.jpg").read_bytes()[:9000])
    report = check(folder)
    assert report.count == 3
    assert sorted(names(report.suggested)) == ["half.jpg", "text.png"]
    assert all(reason.startswith("cannot be read: ") for reason in said(report).values())


def test_a_check_can_be_stopped(tmp_path: Path) -> None:
    folder, seen = folder_of(tmp_path, **{f"n{seed}": scene(seed, (64, 64)) for seed in range(20)}), []
    with pytest.raises(StoppedError, match="stopped"):
        check(folder, progress=lambda done, _: seen.append(done), should_stop=lambda: len(seen) >= 3)
    assert len(seen) == 3


def test_a_thousand_images_are_compared_quickly(tmp_path: Path) -> None:
    rng, seen = np.random.default_rng(0), []
    for number in range(1000):
        path = tmp_path / f"{number:04}.png"
        path.write_bytes(number.to_bytes(2, "big") * (number + 1))
        bits, colours = rng.random(64) < 0.5, rng.random((4, 4, 2)) * 255
        seen.append(image_quality._Seen(path, (512, 512), 0.5, bits, colours))
    begin = time.thread_time()
    report = image_quality._report(seen, 512, 512)
    assert time.thread_time() - begin < 3
    assert report.alike == ()


def test_excluding_moves_what_belongs_to_an_image_and_all_comes_back(tmp_path: Path) -> None:
    own = ["a-masklabel.png", "a.npz", "a.png", "a.txt", "a_att-2.unspread", "a_att.png", "a_att.unspread"]
    for name in (*own, "a2.png", "a2.txt", "a2_att.unspread", "b.png"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    assert names(leave_out(tmp_path, [tmp_path / "a.png"])) == ["a.png"]
    out = tmp_path / LEFT_OUT
    assert sorted(names(out.iterdir())) == own
    assert sorted(names(tmp_path.iterdir())) == ["a2.png", "a2.txt", "a2_att.unspread", "b.png", LEFT_OUT]
    assert [names(each) for each in bring_back(tmp_path)] == [["a.png"], []]
    assert not out.exists()
    assert len(list(tmp_path.iterdir())) == 11
    assert all(path.read_text(encoding="utf-8") == path.name for path in tmp_path.iterdir())
    assert bring_back(tmp_path) == ([], [])


def test_leaving_out_takes_along_nothing_of_others(tmp_path: Path) -> None:
    others = ("model.safetensors", "model.yaml", "model.json", "model_att.safetensors", "model_att.txt")
    own = ("model.png", "model.TXT", "model.caption", "model.npz", "model_att.webp")
    for name in (*others, *own):
        (tmp_path / name).touch()
    leave_out(tmp_path, [tmp_path / "model.png"])
    assert sorted(names(tmp_path.iterdir())) == sorted((LEFT_OUT, *others))
    assert sorted(names((tmp_path / LEFT_OUT).iterdir())) == sorted(own)
    bring_back(tmp_path)
    assert sorted(names(tmp_path.iterdir())) == sorted((*others, *own))


def linked(link: Path, to: str) -> None:
    try:
        link.symlink_to(to)
    except OSError as error:
        pytest.skip(f"no links can be made here: {error}")


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("through", ["data", "way"])
def test_links_lead_where_they_led_when_they_are_left_out_and_when_they_are_back(
    tmp_path: Path, through: str, absolute: bool
) -> None:
    folder = tmp_path / "deep" / "data"
    folder.mkdir(parents=True)
    (tmp_path / "store").mkdir()
    for name in ("a.png", "a.txt"):
        (tmp_path / "store" / name).write_text(name, encoding="utf-8")
        linked(folder / name, str(tmp_path / "store" / name) if absolute else f"../../store/{name}")
    before = {name: (folder / name).readlink() for name in ("a.png", "a.txt")}
    linked(tmp_path / "way", "deep/data")
    seen = folder if through == "data" else tmp_path / "way"
    assert leave_out(seen, [seen / "a.png"]) == [seen / LEFT_OUT / "a.png"]
    for name in ("a.png", "a.txt"):
        assert (folder / LEFT_OUT / name).is_symlink()
        assert (folder / LEFT_OUT / name).read_text(encoding="utf-8") == name
        assert not os.path.lexists(folder / name)
    assert bring_back(seen) == ([seen / "a.png"], [])
    assert {path.name: path.readlink() for path in folder.iterdir()} == before


def test_a_link_that_leads_nowhere_is_left_out_brought_back_and_never_overwritten(tmp_path: Path) -> None:
    linked(tmp_path / "a.png", "../gone/a.png")
    leave_out(tmp_path, [tmp_path / "a.png"])
    (tmp_path / "a.png").write_text("another", encoding="utf-8")
    assert leave_out(tmp_path, [tmp_path / "a.png"]) == [tmp_path / LEFT_OUT / "a (2).png"]
    linked(tmp_path / "a (2).png", "nowhere.png")
    assert [names(each) for each in bring_back(tmp_path)] == [["a.png"], ["a (2).png"]]
    assert (tmp_path / "a.png").readlink() == Path("../gone/a.png")
    assert (tmp_path / "a (2).png").is_symlink()


def test_leaving_out_overwrites_nothing(tmp_path: Path) -> None:
    for content in ("first", "second"):
        for name in ("a.png", "a.txt"):
            (tmp_path / name).write_text(content, encoding="utf-8")
        leave_out(tmp_path, [tmp_path / "a.png"])
    out = tmp_path / LEFT_OUT
    found = {path.name: path.read_text(encoding="utf-8") for path in out.iterdir()}
    assert found == {"a.png": "first", "a.txt": "first", "a (2).png": "second", "a (2).txt": "second"}
    (tmp_path / "a.png").write_text("third", encoding="utf-8")
    assert [names(each) for each in bring_back(tmp_path)] == [["a (2).png"], ["a.png"]]
    assert (tmp_path / "a.png").read_text(encoding="utf-8") == "third"
    assert not (tmp_path / "a.txt").exists(), "a caption does not come back without its image"
    assert (out / "a.txt").exists()


def test_a_shared_caption_stays_until_the_last_image_of_its_name_goes(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "a.txt"):
        (tmp_path / name).touch()
    leave_out(tmp_path, [tmp_path / "a.jpg"])
    assert (tmp_path / "a.txt").exists()
    leave_out(tmp_path, [tmp_path / "a.png"])
    assert sorted(names((tmp_path / LEFT_OUT).iterdir())) == ["a.jpg", "a.png", "a.txt"]


def test_what_cannot_be_moved_is_said_and_the_others_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "b.png", "b.txt", "c.png"):
        (tmp_path / name).write_text(name)
    rename = Path.rename

    def locked(path: Path, target: Path) -> Path:
        if path.name == "b.txt":
            raise PermissionError(13, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", locked)
    told: list[str] = []
    wrong = [tmp_path / "gone.png", tmp_path / "b.png"]
    assert names(leave_out(tmp_path, [*wrong, tmp_path / "a.png", tmp_path / "c.png"], told.append)) == ["a.png", "c.png"]
    assert told == [f"gone.png is not in {tmp_path} any more.", "b.png cannot be moved (Permission denied)."]
    assert sorted(names(tmp_path.glob("*.*"))) == ["b.png", "b.txt"], "an image stays with its caption"
    with pytest.raises(DatasetError, match=r"Nothing was moved. gone.png is not .* b.png cannot be moved"):
        leave_out(tmp_path, wrong)
    (tmp_path / "b.png").rename(tmp_path / LEFT_OUT / "b.png")
    shutil.copy(tmp_path / "b.txt", tmp_path / LEFT_OUT / "b.txt")
    (tmp_path / "b.txt").unlink()
    told.clear()
    assert [names(each) for each in bring_back(tmp_path, told.append)] == [["a.png", "c.png"], []]
    assert told == ["b.png cannot be moved (Permission denied)."]


def test_captions_named_after_the_whole_file_go_along(tmp_path: Path) -> None:
    own = ("01.png", "01.png.txt", "01.TXT", "01.caption")
    for name in (*own, "02.png", "02.png.txt"):
        (tmp_path / name).touch()
    leave_out(tmp_path, [tmp_path / "01.png"])
    assert sorted(names((tmp_path / LEFT_OUT).iterdir())) == sorted(own)


def test_of_images_alike_the_largest_counts_then_one_that_is_lossless_then_the_sharpest(tmp_path: Path) -> None:
    image = scene(3)
    image.save(tmp_path / "b.png")
    image.save(tmp_path / "a.jpg", quality=98, subsampling=0)
    image.save(tmp_path / "c.webp", lossless=True)
    image.save(tmp_path / "d.webp", quality=95)
    image.filter(ImageFilter.GaussianBlur(1)).save(tmp_path / "0.png")
    image.filter(ImageFilter.GaussianBlur(1)).resize((660, 620)).save(tmp_path / "z.jpg", quality=80)
    ((best, *others),) = check(tmp_path).alike
    assert best.name == "z.jpg"
    assert names(others[2:]) == ["0.png", *sorted(names(others[3:]), key=["a.jpg", "d.webp"].index)]
    assert set(names(others[:2])) == {"b.png", "c.webp"}


def nearly_alike(count: int, copies: int) -> tuple[np.ndarray, np.ndarray]:
    """Bits and colours, some of them like others in about as much as just counts."""
    rng = np.random.default_rng(0)
    bits, colours = rng.random((count, 64)) < 0.5, (rng.random((count, 4, 4, 2)) * 255).astype(np.float32)
    for _ in range(copies):
        one, other = rng.integers(count, size=2)
        bits[other] = bits[one]
        bits[other, rng.choice(64, rng.integers(14), replace=False)] ^= True
        colours[other] = colours[one] + rng.normal(0, 8)
    return bits, colours


def test_the_groups_are_those_of_comparing_each_with_each() -> None:
    bits, colours = nearly_alike(1500, 1200)
    left, expected = np.arange(len(bits)), []
    while len(left):
        first, left = left[0], left[1:]
        like = np.count_nonzero(bits[left] != bits[first], axis=1) <= near_duplicates.ALIKE_BITS
        like &= np.abs(colours[left] - colours[first]).mean(axis=(1, 2, 3)) <= near_duplicates.ALIKE_COLOUR
        expected += [[first, *left[like]]] if like.any() else []
        left = left[~like]
    assert len(expected) > 200
    assert near_duplicates.groups(bits, colours) == expected
    assert near_duplicates.groups(bits[:0], colours[:0]) == []


def test_ten_thousand_images_are_grouped_quickly() -> None:
    bits, colours = nearly_alike(10_000, 3000)
    begin = time.thread_time()
    assert len(near_duplicates.groups(bits, colours)) > 500
    assert time.thread_time() - begin < 10
