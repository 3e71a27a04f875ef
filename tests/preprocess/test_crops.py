"""Crops: the WebUI's boxes, told anew from its rules in exact fractions; and its pixels. Knows no contents of images."""

import io
import itertools
import math
import random
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from ti_trainer.errors import DatasetError
from ti_trainer.preprocess import crops

SIDES = (64, 100, 333, 511, 512, 513, 640, 767, 1000, 1023, 1537, 2000, 3000, 4001, 9000)
SOURCES = [*itertools.product(SIDES, SIDES)]
USUAL = [each for each in SOURCES if max(each) <= 16 * min(each)]  # others are neither split nor cropped by their contents
WANTED = [(512, 512), (512, 768), (768, 512), (640, 384), (64, 1024), (1024, 1024), (520, 504)]


def in_photo(scaled, source, left, top, wanted):
    """A crop of the scaled photo as a box of the photo itself, for resizing and cropping at once."""
    x, y = Fraction(source[0], scaled[0]), Fraction(source[1], scaled[1])
    return tuple(float(each) for each in (left * x, top * y, (left + wanted[0]) * x, (top + wanted[1]) * y))


def resize_mode_1(source, wanted):
    """Fill the frame, keep the shape, crop what is over on both sides: the WebUI's 'crop and resize'."""
    (w, h), (across, down) = source, wanted
    wider = Fraction(w, h) >= Fraction(across, down)  # than the frame
    scaled = (w * down // h, down) if wider else (across, h * across // w)
    return in_photo(scaled, source, scaled[0] // 2 - across // 2, scaled[1] // 2 - down // 2, wanted)


@pytest.mark.parametrize("wanted", WANTED)
def test_centre_crops_are_where_the_webui_has_them(wanted):
    for source in SOURCES:
        cut = crops.centre(source, wanted)
        assert cut.size == wanted
        assert cut.box == pytest.approx(resize_mode_1(source, wanted), abs=1e-6), source


def scaled_for_focus(source, wanted):
    """The WebUI's rule: a lying photo fits by height, a standing one by width, a square one by the longer wanted side.

    None where what is scaled so does not cover the crop; the WebUI has black bars then.
    """
    (w, h), (across, down) = source, wanted
    by = Fraction(down, h) if w > h or (w == h and down > across) else Fraction(across, w)
    scaled = int(w * by), int(h * by)
    return scaled if scaled[0] >= across and scaled[1] >= down else None


@pytest.mark.parametrize("wanted", WANTED)
def test_focal_crops_are_where_the_webui_has_them(wanted):
    random.seed(1)
    compared = 0
    for source in USUAL:
        scaled = scaled_for_focus(source, wanted)
        if scaled is None:
            continue
        assert crops.covering(source, wanted) == scaled
        for _ in range(5):
            focus = [random.randint(0, side) for side in scaled]
            start = [at - side // 2 for at, side in zip(focus, wanted, strict=True)]
            start = [0 if at < 0 else min(at, total - side) for at, side, total in zip(start, wanted, scaled, strict=True)]
            cut = crops.focal(source, wanted, tuple(focus))
            assert cut.size == wanted
            assert cut.box == pytest.approx(in_photo(scaled, source, *start, wanted), abs=1e-6), (source, focus)
            compared += 1
    assert compared > 500


def test_the_webuis_own_floating_point_gives_the_same_scaled_size_but_for_a_pixel():
    different = 0
    for (w, h), wanted in itertools.product(SOURCES, WANTED):
        if (exact := scaled_for_focus((w, h), wanted)) is None:
            continue
        by = wanted[1] / h if w > h or (w == h and wanted[1] > wanted[0]) else wanted[0] / w
        inexact = int(w * by), int(h * by)
        assert all(one - other in (0, 1) for one, other in zip(exact, inexact, strict=True))
        different += exact != inexact
    assert 0 < different < 0.15 * len(SOURCES) * len(WANTED)  # the 511 of 512


@pytest.mark.parametrize(
    ("source", "wanted"), [((600, 500), (512, 256)), ((500, 600), (256, 512)), ((999, 1000), (64, 1024))]
)
def test_a_photo_less_extreme_than_the_crop_leaves_no_black_bars(source, wanted):
    assert scaled_for_focus(source, wanted) is None
    for focus in ((0, 0), (250, 250), (5000, 5000)):
        left, top, right, bottom = crops.focal(source, wanted, focus).box
        assert -1e-9 <= left < right <= source[0] + 1e-9
        assert -1e-9 <= top < bottom <= source[1] + 1e-9


def split_by_rule(source, wanted, threshold, overlap):
    """The WebUI's parts: the photo fitted by its short side, as few parts as overlap enough, evenly spread."""
    stands = source[1] > source[0]
    (short, long), (part_short, part_long) = (source, wanted) if stands else (source[::-1], wanted[::-1])
    shown = Fraction(short * part_long, long * part_short)
    if shown >= 1 or shown > Fraction(str(threshold)):
        return []
    length = long * part_short // short
    own = part_long * (1 - Fraction(str(overlap)))
    count = math.ceil((length - part_long * Fraction(str(overlap))) / own)
    if count == 1:
        return []
    starts = [int(Fraction(length - part_long, count - 1) * i) for i in range(count)]
    if stands:
        return [in_photo((part_short, length), source, 0, each, wanted) for each in starts]
    return [in_photo((length, part_short), source, each, 0, wanted) for each in starts]


@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize(("threshold", "overlap"), [(0.5, 0.2), (1.0, 0.0), (0.9, 0.9), (0.3, 0.33)])
def test_parts_are_where_the_webui_has_them(wanted, threshold, overlap):
    some = 0
    for source in USUAL:
        expected = split_by_rule(source, wanted, threshold, overlap)
        cuts = crops.parts(source, wanted, threshold, overlap)
        assert len(cuts) == len(expected), source
        for cut, box in zip(cuts, expected, strict=True):
            assert cut.size == wanted
            assert cut.box == pytest.approx(box, abs=1e-6), source
        some += len(cuts) > 1
    assert some > 10


def test_parts_reach_from_one_end_to_the_other_and_overlap():
    cuts = crops.parts((512, 4000), (512, 512), 0.5, 0.2)
    assert cuts[0].box[1] == 0
    assert cuts[-1].box[3] == pytest.approx(4000)
    assert all(one.box[3] - other.box[1] >= 0.2 * 512 - 1 for one, other in itertools.pairwise(cuts))


def test_a_photo_too_long_by_less_than_a_pixel_is_not_split():
    assert crops.parts((1000, 1001), (512, 512), 1.0, 0.2) == []  # the WebUI divides by zero


@pytest.mark.parametrize("source", [(1, 3000), (10, 10000), (10000, 10), (63, 1009)])
def test_a_photo_that_would_become_gigantic_is_refused_in_words(source):
    named = rf"{source[0]} x {source[1]} px.* 16:1: crop it first"
    for refused in (
        lambda: crops.parts(source, (512, 512), 0.5, 0.2),
        lambda: crops.covering(source, (512, 512)),
        lambda: crops.focal(source, (512, 512), (0, 0)),
    ):
        with pytest.raises(DatasetError, match=named):
            refused()
    assert crops.centre(source, (512, 512)).size == (512, 512)


def test_a_photo_at_the_limit_is_split_and_a_longer_one_that_is_not_split_is_not_refused():
    assert len(crops.parts((100, 1600), (64, 64), 0.5, 0.2)) == 20
    assert crops.covering((1600, 100), (64, 64)) == (1024, 64)
    assert crops.parts((3400, 200), (1024, 64), 0.5, 0.2) == []  # nearly of the shape of its frame


def multicrop(source, limits, objective):
    """The WebUI's choice: all sizes in its order, the first of the best ones."""
    shape = source[0] / source[1]
    best, best_merit = None, None
    for width in range(limits["min_side"], limits["max_side"] + 1, 64):
        for height in range(limits["min_side"], limits["max_side"] + 1, 64):
            quotient = shape / (width / height)
            off = 1 - (quotient if quotient < 1 else 1 / quotient)
            if off > limits["max_error"] or not limits["min_area"] <= width * height <= limits["max_area"]:
                continue
            merit = (width * height, -off) if objective == "maximize area" else (-off, width * height)
            if best is None or merit > best_merit:
                best, best_merit = (width, height), merit
    return best


@pytest.mark.parametrize("objective", ["maximize area", "minimize error"])
@pytest.mark.parametrize(
    "limits",
    [
        {"min_side": 384, "max_side": 768, "min_area": 64 * 64, "max_area": 640 * 640, "max_error": 0.1},
        {"min_side": 64, "max_side": 1024, "min_area": 200_000, "max_area": 512 * 512, "max_error": 0.5},
        {"min_side": 300, "max_side": 1000, "min_area": 64 * 64, "max_area": 4096**2, "max_error": 0.02},
    ],
)
def test_auto_sized_crops_have_the_webuis_sizes_and_the_exact_middle(objective, limits):
    chosen = 0
    for source in SOURCES:
        expected = multicrop(source, limits, objective)
        cut = crops.auto_sized(source, objective=objective, **limits)
        if expected is None:
            assert cut is None, source
            continue
        assert cut.size == expected, source
        assert_exact_middle(cut, source)
        chosen += 1
    assert chosen > 30


def assert_exact_middle(cut, source):
    left, top, right, bottom = cut.box
    assert (right - left) / (bottom - top) == pytest.approx(cut.size[0] / cut.size[1])
    assert (left + right, top + bottom) == pytest.approx(source)
    assert min(left, top) == pytest.approx(0)


def test_buckets_keep_the_shape_and_squash_nothing():
    for source in SOURCES:
        cut = crops.bucket(source, 512 * 512)
        assert cut.size[0] * cut.size[1] <= 512 * 512
        assert cut.size[0] % 64 == cut.size[1] % 64 == 0
        assert_exact_middle(cut, source)
        if max(source) < 1.5 * min(source):
            share = (cut.box[2] - cut.box[0]) * (cut.box[3] - cut.box[1]) / (source[0] * source[1])
            assert share > 0.85, source


def smooth(size):
    x, y = np.meshgrid(np.linspace(0, 5, size[0]), np.linspace(0, 4, size[1]))
    waves = np.stack([np.sin(x + y), np.cos(2 * x - y), np.sin(x * y / 3)], axis=-1)
    return Image.fromarray((127 + 120 * waves).astype(np.uint8))


@pytest.mark.parametrize("source", [(1000, 750), (751, 1000), (300, 200), (2003, 512)])
def test_pixels_are_those_of_resizing_all_of_it_and_cropping_then(source):
    photo, wanted = smooth(source), (512, 384)
    scaled = crops.covering(source, wanted)
    whole = photo.resize(scaled, Image.Resampling.LANCZOS)
    for focus in ((0, 0), (scaled[0] // 2, scaled[1] // 2), scaled):
        cut = crops.focal(source, wanted, focus)
        left, top = (round(start * side / total) for start, side, total in zip(cut.box, scaled, source, strict=False))
        expected = whole.crop((left, top, left + wanted[0], top + wanted[1]))
        apart = np.abs(np.asarray(crops.render(photo, cut, source), int) - np.asarray(expected, int))
        assert apart.max() <= 2


def test_a_photo_of_the_wanted_size_keeps_every_pixel():
    photo = Image.effect_noise((512, 384), 90).convert("RGB")
    for cut in (crops.whole((512, 384)), crops.centre((512, 384), (512, 384))):
        assert crops.render(photo, cut, (512, 384)).tobytes() == photo.tobytes()


def test_cuts_of_every_kind_can_be_rendered_for_any_size():
    for source in [(1, 1), (3, 5000), (3, 48), (64, 65), (511, 513), (4001, 77), (1232, 77)]:
        photo = Image.new("RGB", source, "orange")
        cuts = [
            crops.whole(source),
            crops.centre(source, (64, 72)),
            crops.bucket(source, 64 * 64),
        ]
        if max(source) <= 16 * min(source):
            cuts += [crops.focal(source, (72, 64), (9999, -9999)), *crops.parts(source, (64, 64), 0.9, 0.3)[:3]]
        for cut in cuts:
            made = crops.render(photo, cut, source)
            assert made.size == cut.size
            assert made.getextrema() == ((255, 255), (165, 165), (0, 0))  # nothing black at the borders


def test_a_jpeg_of_12_megapixels_is_decoded_at_a_quarter_for_512():
    source, expected = (4000, 3000), (1000, 750)
    file = io.BytesIO()
    smooth(source).save(file, "JPEG", quality=95)
    cuts = [crops.centre(source, (512, 512))]
    with Image.open(file) as opened:
        opened.draft("RGB", crops.draft_size(source, cuts))
        assert opened.size == expected
        drafted = crops.render(opened.convert("RGB"), cuts[0], source)
    with Image.open(file) as opened:
        full = crops.render(opened.convert("RGB"), cuts[0], source)
    assert np.abs(np.asarray(drafted, int) - np.asarray(full, int)).max() <= 2


def test_a_draft_is_never_smaller_than_what_is_cut_out_of_it():
    for source, wanted in itertools.product(SOURCES, WANTED):
        cuts = [crops.centre(source, wanted)]
        if source in USUAL:
            cuts += [crops.focal(source, wanted, (0, 0)), *crops.parts(source, wanted, 1.0, 0.2)]
        width, height = crops.draft_size(source, cuts)
        assert width <= source[0]
        assert height <= source[1]
        for cut in cuts:
            left, top, right, bottom = cut.box
            reduced = (right - left) / source[0] * width >= cut.size[0] and (bottom - top) / source[1] * height >= cut.size[
                1
            ]
            assert reduced or (width, height) == source
    assert crops.draft_size((4000, 3000), [crops.whole((4000, 3000))]) == (4000, 3000)
