"""A photo's mask goes where its photo goes, in every way of cutting; a second time nothing that somebody painted is lost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_runner import shown, work

from ti_trainer.data.image_files import find_images
from ti_trainer.data.listing import FLIPPED, LEFT_OUT
from ti_trainer.data.mask_files import take_away
from ti_trainer.data.masks import masks_beside
from ti_trainer.errors import ConfigError
from ti_trainer.preprocess.manifest import FILE, JOURNAL
from ti_trainer.preprocess.runner import Preprocessing

ON_ITS_SIDE = Image.Exif()
ON_ITS_SIDE[0x0112] = 6


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Grey blotches, none like another."""
    blotches = np.random.default_rng(seed).integers(0, 256, (size[1] // 16, size[0] // 16), np.uint8)
    return Image.fromarray(blotches).resize(size, Image.Resampling.BICUBIC)


def masked(
    folder: Path, name: str = "a_att.png", size: tuple[int, int] = (320, 192), scale: float = 1, **saving: object
) -> Path:
    """A grey photo a.png that is its own mask, as far as the scale lets it, and one without."""
    folder.mkdir(exist_ok=True)
    photo = noise(size)
    photo.convert("RGB").save(folder / "a.png", **saving)
    at = (round(size[0] * scale), round(size[1] * scale))
    photo.resize(at, Image.Resampling.BOX).save(folder / name, **saving)
    noise(size, 1).convert("RGB").save(folder / "b.png")
    return folder


def made(source: Path) -> Path:
    return source.parent / "data set"


def grey(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("L")).astype(float)


def repaint(path: Path, shade: int = 77) -> bytes:
    """As a user would, over what is there."""
    with Image.open(path) as there:
        size = there.size
    Image.new("L", size, shade).save(path)
    return path.read_bytes()


WAYS = {
    "centre": {},
    "focal": {"resize": "focal", "debug_image": True},
    "auto-size": {"resize": "auto-size", "min_side": 64, "max_side": 256, "max_area": 256 * 256, "max_error": 0.3},
    "buckets": {"resize": "buckets", "width": 128, "height": 128},
    "keep": {"resize": "keep"},
    "split": {"split": True, "split_threshold": 0.9},
    "jpg": {"format": "jpg"},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("scale", "saving"), [(1, {}), (0.5, {"exif": ON_ITS_SIDE})])
def test_a_mask_is_cut_and_mirrored_as_its_photo_is(tmp_path: Path, way: str, scale: float, saving: dict) -> None:
    source = masked(tmp_path / "photos", scale=scale, **saving)
    summary = work(source, flip=True, **WAYS[way]).run()
    images = [path for path in find_images(made(source)) if path.stem.startswith("a")]
    masks = masks_beside(made(source))
    assert set(masks) == {path.stem for path in images}  # and none of b
    assert len(images) == (4 if way == "split" else 2)
    assert (summary.failed, summary.masks) == ([], len(images))
    for image in images:
        mask = masks[image.stem]
        assert mask.name == f"{image.stem}_att.png"
        with Image.open(mask) as opened:
            assert opened.mode == "L"
        assert grey(mask).shape == grey(image).shape
        near, mirrored = np.abs(grey(mask) - grey(image)).mean(), np.abs(grey(mask)[:, ::-1] - grey(image)).mean()
        assert near < 6
        assert mirrored > 40
    assert any(path.stem.endswith(FLIPPED) for path in images)


@pytest.mark.parametrize("name", ["a_att.png", "a-masklabel.png", "a-masklabel.jpg"])
def test_the_name_of_a_mask_says_what_its_greys_mean(tmp_path: Path, name: str) -> None:
    source = masked(tmp_path / "photos", name)
    work(source, flip=True, format="webp").run()
    mark = Path(name).stem.removeprefix("a")
    assert shown(made(source)) == sorted(
        ["a.webp", "a-flipped.webp", f"a{mark}.png", f"a-flipped{mark}.png", "b.webp", "b-flipped.webp"]
    )


def test_a_mask_folder_goes_before_and_has_like_sub_folders(tmp_path: Path) -> None:
    source = masked(tmp_path / "photos")
    masked(source / "sub").joinpath("a_att.png").unlink()
    folders = source / "masks"  # within the source: no photos
    for place, shade in ((folders, 10), (folders / "sub", 20)):
        place.mkdir()
        Image.new("RGB", (160, 96), (shade,) * 3).save(place / "a.jpg", quality=95)
    summary = work(source, recursive=True, masks=str(folders)).run()
    assert (summary.sources, summary.masks, summary.failed) == (4, 2, [])
    assert [path.name for path in sorted(masks_beside(made(source)).values())] == ["a-masklabel.png", "sub_a-masklabel.png"]
    for name, shade in (("a", 10), ("sub_a", 20)):
        assert abs(grey(made(source) / f"{name}-masklabel.png") - shade).max() <= 1
    assert work(source, recursive=True, masks=str(folders)).run().done_before == 4
    folders.rename(tmp_path / "masks")
    assert work(source, recursive=True).run().sources == 2
    assert shown(made(source)) == ["a.png", "a_att.png", "b.png", "sub_a.png", "sub_b.png"]


@pytest.mark.parametrize("masks", ["nowhere", "photos"])
def test_a_mask_folder_that_cannot_be_one_is_refused(tmp_path: Path, masks: str) -> None:
    source = masked(tmp_path / "photos")
    with pytest.raises(ConfigError, match="mask directory") as refused:
        work(source, masks=str(tmp_path / masks)).check()
    assert refused.value.option == "masks"


def test_a_mask_of_another_shape_or_a_broken_one_is_a_failure_of_its_photo(tmp_path: Path) -> None:
    source = masked(tmp_path / "photos")
    Image.new("L", (192, 192)).save(source / "a_att.png")
    (source / "b_att.png").write_bytes(b"nothing")
    noise((320, 192), 2).save(source / "c.png")
    summary = work(source).run()
    failed = dict(summary.failed)
    assert failed.keys() == {"a.png", "b.png"}
    assert failed["a.png"] == "its mask a_att.png is 192 x 192 px, expected the aspect ratio of 320 x 192 px"
    assert shown(made(source)) == ["c.png"]


@pytest.mark.parametrize("named", ["folder", "relative"])
def test_a_preview_says_the_same_of_masks_as_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    source, folder = masked(tmp_path / "photos"), tmp_path / "masks"
    folder.mkdir()
    (source / "a_att.png").rename(folder / "a.png")
    Image.new("L", (192, 192)).save(folder / "b.png")
    masks = str(folder)
    if named == "relative":
        monkeypatch.chdir(tmp_path)
        source, masks = Path("photos"), "masks"
    planned = work(source, masks=masks, flip=True)
    (_, results, _), (_, refused, said) = planned.preview(2)
    assert (refused, said) == ([], "its mask b.png is 192 x 192 px, expected the aspect ratio of 320 x 192 px")
    summary = planned.run()
    assert summary.failed == [("b.png", said)]
    for each in results:
        there = Image.open(planned.destination / f"a{each.suffix}-masklabel.png")
        assert np.array_equal(np.asarray(each.mask), np.asarray(there))
    assert [each.suffix for each in results] == ["", FLIPPED]


def test_the_summary_knows_one_from_many(tmp_path: Path) -> None:
    source = masked(tmp_path / "photos")
    (source / "b.png").write_bytes(b"nothing")
    summary = work(source).run()
    assert summary.lines()[0].startswith("Made 1 image from 1 source image in ")
    assert summary.lines()[-1] == "1 file could not be used."
    assert work(source).run().lines()[1].startswith("Already done with the same options: 1 source image")


def test_transparency_is_cut_and_mirrored_with_its_image(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    source.mkdir()
    photo = noise((320, 192))
    Image.merge("RGBA", [photo] * 4).save(source / "a.png")
    work(source, keep_alpha=True, flip=True).run()
    plain, flipped = (Image.open(made(source) / f"a{end}.png") for end in ("", FLIPPED))
    for each in (plain, flipped):
        red, *_, alpha = (np.asarray(band).astype(float) for band in each.split())
        assert np.abs(red - alpha)[alpha > 32].mean() < 3  # resized with alpha, dark places lose some of their colour
    assert np.array_equal(np.asarray(flipped), np.asarray(plain)[:, ::-1])
    assert np.asarray(plain)[..., 3].std() > 20


def test_a_second_time_makes_no_mask_twice(tmp_path: Path) -> None:
    source = masked(tmp_path / "photos")
    again = work(source, flip=True)
    again.run()
    signatures = {path: path.stat().st_mtime_ns for path in made(source).iterdir()}
    summary = again.run()
    assert (summary.done_before, summary.masks) == (2, 0)
    assert {path: path.stat().st_mtime_ns for path in made(source).iterdir() if path.name != FILE} == {
        path: signature for path, signature in signatures.items() if path.name != FILE
    }


def test_a_new_a_changed_and_a_removed_mask_are_made_again_each_for_its_photo_alone(tmp_path: Path) -> None:
    source = masked(tmp_path / "photos")
    work(source).run()
    before = grey(made(source) / "a_att.png")
    Image.new("L", (320, 192), 9).save(source / "a_att.png")
    Image.new("L", (320, 192), 8).save(source / "b-masklabel.png")
    summary = work(source).run()
    assert (summary.sources, summary.masks, summary.kept) == (2, 2, [])
    assert before.std() > 20
    assert np.unique(grey(made(source) / "a_att.png")) == [9]
    assert np.unique(grey(made(source) / "b-masklabel.png")) == [8]
    (source / "a_att.png").unlink()
    summary = work(source).run()
    assert (summary.sources, summary.done_before) == (1, 1)
    assert shown(made(source)) == ["a.png", "b-masklabel.png", "b.png"]
    (made(source) / "b-masklabel.png").unlink()
    assert work(source).run().masks == 1


def test_a_mask_of_another_kind_replaces_the_one_before(tmp_path: Path) -> None:
    source = masked(tmp_path / "photos")
    work(source).run()
    (source / "a_att.png").rename(source / "a-masklabel.png")
    work(source).run()
    assert shown(made(source)) == ["a-masklabel.png", "a.png", "b.png"]


def test_a_mask_that_was_painted_over_outlives_every_change(tmp_path: Path) -> None:
    source = masked(tmp_path / "photos")
    work(source, flip=True).run()
    before = repaint(made(source) / "a_att.png")
    Image.new("L", (320, 192), 9).save(source / "a_att.png")
    for options in ({"flip": True}, {"flip": True, "width": 128}, {"format": "jpg"}, {}):
        summary = work(source, **options).run()
        assert (made(source) / "a_att.png").read_bytes() == before
        assert "a_att.png" in summary.kept
    assert shown(made(source)) == ["a.png", "a_att.png", "b.png"]
    (source / "a_att.png").unlink()
    work(source).run()
    assert (made(source) / "a_att.png").read_bytes() == before


@pytest.mark.parametrize("name", ["a_att.png", "a-masklabel.png", "a_att.webp"])
def test_a_mask_that_was_painted_in_the_destination_stays_until_it_is_removed(tmp_path: Path, name: str) -> None:
    source = masked(tmp_path / "photos")
    (source / "a_att.png").rename(tmp_path / "later.png")
    work(source).run()
    Image.new("L", (64, 64), 7).save(made(source) / name)
    before = (made(source) / name).read_bytes()
    (tmp_path / "later.png").rename(source / "a_att.png")
    summary = work(source).run()
    assert (summary.kept, summary.masks, summary.failed) == ([name], 0, [])
    assert (made(source) / name).read_bytes() == before
    assert shown(made(source)) == sorted(["a.png", name, "b.png"])
    assert work(source).run().done_before == 2
    (made(source) / name).unlink()
    assert work(source).run().masks == 1


def test_a_painted_mask_keeps_its_image_when_other_options_would_remove_it(tmp_path: Path) -> None:
    """Alone it would be trained on as an image."""
    source = masked(tmp_path / "photos")
    work(source, flip=True).run()
    painted = repaint(made(source) / "a-flipped_att.png")
    Image.new("L", (64, 64), 7).save(made(source) / "b-flipped_att.png")
    for _ in range(2):
        work(source).run()
        assert shown(made(source)) == sorted(
            ["a.png", "a_att.png", "a-flipped.png", "a-flipped_att.png", "b.png", "b-flipped.png", "b-flipped_att.png"]
        )
    assert (made(source) / "a-flipped_att.png").read_bytes() == painted
    assert work(source, flip=True, width=128).run().failed == []
    assert Image.open(made(source) / "a-flipped.png").size == (128, 64)
    (made(source) / "b-flipped_att.png").unlink()
    work(source).run()
    assert "b-flipped.png" not in shown(made(source))


def test_a_mask_that_was_taken_away_stays_away(tmp_path: Path) -> None:
    source = masked(tmp_path / "photos")
    work(source).run()
    take_away(made(source) / "a.png")
    assert work(source).run().done_before == 2
    Image.new("L", (320, 192), 9).save(source / "a_att.png")
    for options in ({}, {"width": 128}):
        assert work(source, **options).run().masks == 0
        assert shown(made(source)) == ["a.png", "b.png", LEFT_OUT]
    onwards = Preprocessing(made(source), tmp_path / "onwards", work(source, recursive=True).config)
    assert onwards.run().sources == 2  # what was taken away is no photo


def test_leftovers_of_earlier_options_go_with_their_masks(tmp_path: Path) -> None:
    source = masked(tmp_path / "photos")
    work(source, split=True, split_threshold=0.9, flip=True).run()
    assert "a-2-flipped_att.png" in shown(made(source))
    work(source).run()
    assert shown(made(source)) == ["a.png", "a_att.png", "b.png"]


def test_a_retouched_image_keeps_its_mask_and_gets_another_only_where_it_fits(tmp_path: Path) -> None:
    source = masked(tmp_path / "photos")
    work(source).run()
    retouched, mask = repaint(made(source) / "a.png"), (made(source) / "a_att.png").read_bytes()
    work(source, width=128).run()
    assert (made(source) / "a.png").read_bytes() == retouched
    assert (made(source) / "a_att.png").read_bytes() == mask
    Image.new("L", (320, 192), 9).save(source / "a_att.png")
    assert work(source).run().masks == 1
    assert np.unique(grey(made(source) / "a_att.png")) == [9]
    (made(source) / "a_att.png").unlink()
    (source / "a_att.png").unlink()
    assert work(source).run().sources == 1
    assert work(source).run().done_before == 2


def test_what_was_left_out_gets_no_mask_until_it_is_back(tmp_path: Path) -> None:
    source = masked(tmp_path / "photos")
    work(source).run()
    (made(source) / LEFT_OUT).mkdir()
    for name in ("a.png", "a_att.png"):
        (made(source) / name).rename(made(source) / LEFT_OUT / name)
    assert work(source).run().done_before == 2
    Image.new("L", (320, 192), 9).save(source / "a_att.png")
    for options in ({}, {"width": 128}, {}):
        work(source, **options).run()
        assert shown(made(source)) == ["b.png", LEFT_OUT]
    (made(source) / LEFT_OUT / "a.png").rename(made(source) / "a.png")
    (made(source) / LEFT_OUT / "a_att.png").unlink()
    work(source).run()
    assert np.unique(grey(made(source) / "a_att.png")) == [9]


def test_a_manifest_of_an_earlier_version_still_works(tmp_path: Path) -> None:
    source = masked(tmp_path / "photos")
    (source / "a_att.png").rename(tmp_path / "later.png")
    work(source).run()
    manifest = json.loads((made(source) / FILE).read_text())
    for entry in manifest:
        assert entry.pop("masks") == {}
    (made(source) / FILE).write_text(json.dumps(manifest))
    assert work(source).run().done_before == 2
    (tmp_path / "later.png").rename(source / "a_att.png")
    summary = work(source).run()
    assert (summary.done_before, summary.sources, summary.masks) == (1, 1, 1)


def test_after_a_kill_the_journal_tells_which_masks_are_ours(tmp_path: Path) -> None:
    """As if it had been killed before the ledger was saved, and while a mask was being written."""
    source = masked(tmp_path / "photos")
    work(source).run()
    manifest = json.loads((made(source) / FILE).read_text())
    lines = [
        {"stem": entry["stem"], "name": name, "signature": signature, **({"mask": True} if kind == "masks" else {})}
        for entry in manifest
        for kind in ("images", "masks")
        for name, signature in entry[kind].items()
    ]
    for entry in manifest:
        entry |= {"settings": "", "images": {}, "masks": {}}
    (made(source) / FILE).write_text(json.dumps(manifest))
    (made(source) / JOURNAL).write_text("\n".join(map(json.dumps, lines)) + "\n")
    (made(source) / ".a_att-0123abcd.png").write_bytes(b"half")
    summary = work(source, width=128).run()
    assert (summary.kept, summary.masks) == ([], 1)
    assert Image.open(made(source) / "a_att.png").size == (128, 64)
    assert shown(made(source)) == ["a.png", "a_att.png", "b.png"]


def test_a_ledger_from_elsewhere_cannot_make_us_remove_files_as_masks(tmp_path: Path) -> None:
    source = masked(tmp_path / "photos")
    work(source).run()
    manifest = (made(source) / FILE).read_text()
    (made(source) / FILE).write_text(manifest.replace('"a_att.png"', '"../photos/a_att.png"'))
    with pytest.raises(ConfigError, match="damaged"):
        work(source, width=128).run()


def test_a_photo_is_never_named_as_another_ones_mask(tmp_path: Path) -> None:
    """a.png and a/att.png would become a.png and a_att.png."""
    source = masked(tmp_path / "photos")
    (source / "a_att.png").unlink()
    for name in ("a/att.png", "b-flipped/mask.png"):
        (source / name).parent.mkdir()
        noise((64, 64), 3).save(source / name)
    summary = work(source, recursive=True, flip=True).run()
    assert (summary.images, summary.failed) == (8, [])
    assert len(find_images(made(source))) == 8
    assert masks_beside(made(source)) == {}


def test_the_summary_says_how_many_masks_there_are(tmp_path: Path) -> None:
    summary = work(masked(tmp_path / "photos"), flip=True).run()
    assert summary.lines()[0].endswith(", 2 with a mask.")
    assert "Made 4 images from 2 source images" in summary.lines()[0]
