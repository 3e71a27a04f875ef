"""The focal point: the WebUI's numbers, told anew from its formulas; and drawn images of which we know the subject."""

import logging
import sys

import numpy as np
import pytest
from PIL import Image, ImageFilter

from ti_trainer.preprocess import crops, focal
from ti_trainer.preprocess.focal import Weights

WANTED = (256, 256)
ENTROPY_ONLY = Weights(face=0, entropy=1, edges=0)
EDGES_ONLY = Weights(face=0, entropy=0, edges=1)
FACE_ONLY = Weights(face=1, entropy=0, edges=0)


def scene(size, seed):
    """A smooth background, a subject with texture somewhere off the middle, and the subject's box."""
    random = np.random.default_rng(seed)
    (width, height), side = size, int(min(size) * 0.4)
    y, x = np.mgrid[0:height, 0:width]
    phase = random.uniform(0, 6, 3)
    sky = 130 + 60 * np.stack([np.sin(x / width * 2 + y / height + each) for each in phase], axis=-1)
    pixels = sky.clip(0, 255).astype(np.uint8)
    room = [total - side for total in size]
    # In the first or last quarter of the long axis, anywhere on the other, above the lowest tenth.
    along = 0 if width > height else 1
    start = [int(random.uniform(0.1, 0.8) * each) for each in room]
    start[along] = int(room[along] * (random.uniform(0, 0.2) if random.random() < 0.5 else random.uniform(0.75, 0.9)))
    texture = Image.fromarray(random.integers(0, 256, (side // 8, side // 8, 3), np.uint8)).resize(
        (side, side), Image.NEAREST
    )
    image = Image.fromarray(pixels)
    image.paste(texture, tuple(start))
    return image.filter(ImageFilter.GaussianBlur(1)), (*start, start[0] + side, start[1] + side)


def overlap(box, other):
    """How much of the first box is in the other."""
    sides = [max(0, min(box[i + 2], other[i + 2]) - max(box[i], other[i])) for i in (0, 1)]
    return sides[0] * sides[1] / ((box[2] - box[0]) * (box[3] - box[1]))


def scaled(image, wanted=WANTED):
    return image.resize(crops.covering(image.size, wanted), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("weights", "size"),
    [*((Weights(), size) for size in [(960, 480), (480, 960), (1000, 750), (640, 1100)]), (EDGES_ONLY, (480, 960))],
)
def test_the_crop_has_the_subject_where_the_centre_crop_has_not(size, weights):
    pytest.importorskip("cv2")
    by_focus, by_centre = [], []
    for seed in range(6):
        image, subject = scene(size, seed)
        focus = focal.find(scaled(image), WANTED, weights, None)
        by_focus.append(overlap(subject, crops.focal(size, WANTED, focus.point).box))
        by_centre.append(overlap(subject, crops.centre(size, WANTED).box))
    assert min(by_focus) > 0.97
    assert np.mean(by_centre) < (0.95 if size == (1000, 750) else 0.65)


def webui_entropy_point(image, wanted):
    """Windows every 4 px along the long axis that end before the image does; -log2 of each share of dithered pixels."""
    along = 0 if image.width > image.height else 1
    best, most = None, 0
    start = 0
    while start + wanted[along] < image.size[along]:
        corner = (start, 0) if along == 0 else (0, start)
        window = image.crop((*corner, corner[0] + wanted[0], corner[1] + wanted[1]))
        shares = np.bincount(np.asarray(window.convert("1"), np.uint8).ravel()) / (wanted[0] * wanted[1])
        entropy = -np.log2(shares[shares > 0]).sum()
        if entropy > most:
            best, most = (corner[0] + wanted[0] // 2, corner[1] + wanted[1] // 2), entropy
        start += 4
    return best


def photo(size, seed):
    """An image with detail of all sizes everywhere, in strong colours."""
    random = np.random.default_rng(seed)
    sum_ = np.zeros((size[1], size[0], 3))
    for grain in (3, 12, 50):
        noise = Image.fromarray(random.integers(0, 256, (grain, grain, 3), np.uint8)).resize(size, Image.BICUBIC)
        sum_ += np.asarray(noise, float) / 3
    return Image.fromarray(((sum_ - sum_.min()) / np.ptp(sum_) * 255).astype(np.uint8))


@pytest.mark.parametrize("size", [(400, 256), (256, 341), (700, 256), (257, 256)])
@pytest.mark.parametrize("seed", range(3))
def test_the_entropy_point_is_the_webuis(size, seed):
    image = photo(size, seed)
    expected = webui_entropy_point(image, WANTED)
    assert focal.find(image, WANTED, ENTROPY_ONLY, None).point == expected


@pytest.mark.parametrize("size", [(400, 256), (256, 341)])
@pytest.mark.parametrize("seed", range(3))
def test_all_three_are_averaged_by_their_weights_as_in_the_webui(size, seed):
    cv2 = pytest.importorskip("cv2")
    image = photo(size, seed)
    grey = np.array(image.convert("L"))
    grey[int(size[1] * 0.9) :] = 0x99  # watermarks are there
    corners = cv2.goodFeaturesToTrack(grey, 100, 0.04, min(size) * 0.06).reshape(-1, 2)
    boxes = [(20.5, 30.2, 50.9, 70.7), (200, 100, 40, 40)]
    face = np.mean([(int(x + w * 0.5), int(y + h * 0.33)) for x, y, w, h in boxes], axis=0)
    entropy = np.array(webui_entropy_point(image, WANTED))
    expected = (0.5 * corners.mean(axis=0) + 0.15 * entropy + 0.9 * face) / (0.5 + 0.15 + 0.9)
    focus = focal.find(image, WANTED, Weights(0.9, 0.15, 0.5), lambda _: boxes)
    assert focus.point == pytest.approx(expected, abs=0.51)
    assert {each.kind: each.share for each in focus.found} == pytest.approx(
        {"Edge": 0.5 / 1.55, "Entropy": 0.15 / 1.55, "Face": 0.9 / 1.55}
    )


def test_what_was_not_found_has_no_share():
    focus = focal.find(photo((400, 256), 1), WANTED, Weights(0.9, 0.15, 0), lambda _: [])
    assert [(each.kind, each.share) for each in focus.found] == [("Entropy", 1)]


def test_a_face_draws_the_crop_to_itself():
    image = photo((800, 256), 1)
    focus = focal.find(image, WANTED, FACE_ONLY, lambda given: [(600, 20, 100, 100)] if given is image else [])
    assert focus.point == (650, 53)
    assert crops.focal((800, 256), WANTED, focus.point).box == (522, 0, 778, 256)


@pytest.mark.parametrize("weights", [Weights(0, 0, 0), FACE_ONLY, ENTROPY_ONLY])
@pytest.mark.parametrize("colour", ["black", "white"])
def test_where_there_is_nothing_to_see_the_middle_is_taken(weights, colour):
    focus = focal.find(Image.new("RGB", (500, 256), colour), WANTED, weights, lambda _: [])
    assert focus == focal.Focus((250, 128), ())


def test_windows_move_where_there_is_room_though_the_photo_lies():
    """The WebUI moves them to the right here, where there is none, and has black bars besides."""
    lying, wanted = photo((512, 426), 3), (512, 256)
    focus = focal.find(lying, wanted, ENTROPY_ONLY, None)
    turned = focal.find(lying.transpose(Image.Transpose.TRANSPOSE), wanted[::-1], ENTROPY_ONLY, None)
    assert [each.kind for each in focus.found] == ["Entropy"]
    assert focus.point[0] == 256
    assert focus.point[1] in range(128, 300)
    assert abs(turned.point[0] - focus.point[1]) <= 8  # dithering goes from left to right


def test_without_opencv_entropy_is_left_and_it_is_said_once(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "cv2", None)
    focal._warn.cache_clear()
    image = photo((400, 256), 1)
    assert "-m pip install opencv-python-headless" in focal.missing()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            focus = focal.find(image, WANTED, Weights(), None)
    assert [each.kind for each in focus.found] == ["Entropy"]
    assert focus.point == webui_entropy_point(image, WANTED)
    assert len(caplog.records) == 1
    assert "opencv-python-headless" in caplog.text


def test_with_opencv_nothing_is_missing():
    pytest.importorskip("cv2")
    assert focal.missing() == ""


def test_the_debug_image_shows_the_frame_the_points_and_leaves_the_image_alone():
    image = photo((500, 256), 2)
    before = image.tobytes()
    focus = focal.find(image, WANTED, Weights(1, 1, 0), lambda _: [(20, 30, 50, 60), (300, 100, 40, 40)])
    drawn = focal.annotate(image, focus, (100.2, 0, 356.2, 256))
    assert drawn.size == image.size
    assert image.tobytes() == before
    assert [drawn.getpixel(each) for each in ((100, 5), (355, 100), (200, 255), (300, 0))] == [(0, 255, 0)] * 4
    for x, y in ((45, 49), (320, 113)):  # both faces' points
        assert drawn.getpixel((x - 2, y - 2)) == (255, 0, 0)
    changed = np.any(np.asarray(drawn) != np.asarray(image), axis=-1)
    labels = (np.asarray(drawn) == (255, 255, 0)).all(axis=-1) & changed
    assert labels.sum() > 20  # Entropy: 0.50
