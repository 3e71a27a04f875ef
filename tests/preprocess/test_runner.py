"""A folder of photos becomes a dataset: what is written, what a second time does, and what nothing ever touches."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from ti_trainer.config.preprocessing import PreprocessConfig
from ti_trainer.data.listing import LEFT_OUT
from ti_trainer.errors import ConfigError, DatasetError
from ti_trainer.preprocess.manifest import FILE
from ti_trainer.preprocess.runner import Preprocessing

SMALL = {"width": 64, "height": 64}


def photo(path: Path, size: tuple[int, int] = (160, 120), colour: str = "red", **saving: object) -> Path:
    """Of one colour, its left half black."""
    image = Image.new("RGB", size, colour)
    ImageDraw.Draw(image).rectangle((0, 0, size[0] // 2 - 1, size[1]), fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **saving)
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "my photos ö"
    for number, colour in enumerate(("red", "green", "blue")):
        photo(folder / f"IMG {number}.jpg", colour=colour, quality=95)
    (folder / "IMG 0.txt").write_text("a caption", encoding="utf-8")
    return folder


def work(source: Path, **options: object) -> Preprocessing:
    """Without captions, if not told otherwise: most tests are about images."""
    config = PreprocessConfig(**{**SMALL, "existing_captions": "ignore", **options})
    return Preprocessing(source, source.parent / "data set", config)


def contents(folder: Path) -> dict[str, bytes]:
    return {each.relative_to(folder).as_posix(): each.read_bytes() for each in sorted(folder.rglob("*")) if each.is_file()}


def shown(folder: Path) -> list[str]:
    """What training would see, and its captions."""
    return sorted(each.name for each in folder.iterdir() if each.name != FILE)


@pytest.mark.usefixtures("worker_processes")
def test_photos_become_images_of_the_size_and_originals_stay(source: Path) -> None:
    before = contents(source)
    summary = work(source, flip=True, existing_captions="copy").run()
    made = source.parent / "data set"
    assert shown(made) == [
        *("IMG 0-flipped.png", "IMG 0-flipped.txt", "IMG 0.png", "IMG 0.txt"),
        *("IMG 1-flipped.png", "IMG 1.png", "IMG 2-flipped.png", "IMG 2.png"),
    ]
    assert (summary.sources, summary.images, summary.captions, summary.failed) == (3, 6, 2, [])
    with Image.open(made / "IMG 1.png") as plain, Image.open(made / "IMG 1-flipped.png") as flipped:
        assert plain.size == flipped.size == (64, 64)
        assert plain.getpixel((5, 30))[1] < 20 < plain.getpixel((58, 30))[1]
        assert flipped.getpixel((58, 30))[1] < 20 < flipped.getpixel((5, 30))[1]
    assert contents(source) == before
    assert (made / "IMG 0-flipped.txt").read_text() == "a caption"


def test_a_second_time_makes_nothing_twice(source: Path) -> None:
    again = work(source, flip=True, existing_captions="copy")
    again.run()
    made = contents(again.destination)
    signatures = {each: each.stat().st_mtime_ns for each in again.destination.glob("*.png")}
    summary = again.run()
    assert (summary.done_before, summary.sources) == (3, 0)
    assert contents(again.destination) == made
    assert {each: each.stat().st_mtime_ns for each in again.destination.glob("*.png")} == signatures


def test_a_photo_that_came_later_is_added(source: Path) -> None:
    work(source).run()
    photo(source / "IMG 00.jpg")
    summary = work(source).run()
    assert (summary.done_before, summary.sources) == (3, 1)
    assert shown(source.parent / "data set") == ["IMG 0.png", "IMG 00.png", "IMG 1.png", "IMG 2.png"]


def test_other_options_replace_what_earlier_ones_made(source: Path) -> None:
    work(source, flip=True, existing_captions="copy").run()
    work(source, format="jpg").run()
    assert shown(source.parent / "data set") == ["IMG 0.jpg", "IMG 1.jpg", "IMG 2.jpg"]


def test_what_the_user_changed_or_left_out_stays_so(source: Path) -> None:
    work(source, existing_captions="copy").run()
    made = source.parent / "data set"
    (made / "IMG 0.txt").write_text("a better caption")
    Image.new("RGB", (64, 64), "white").save(made / "IMG 1.png")
    painted = (made / "IMG 1.png").read_bytes()
    (made / LEFT_OUT).mkdir()
    (made / "IMG 2.png").rename(made / LEFT_OUT / "IMG 2.png")
    summary = work(source, existing_captions="copy", width=128, height=128).run()
    assert (made / "IMG 0.txt").read_text() == "a better caption"
    assert (made / "IMG 1.png").read_bytes() == painted
    assert not (made / "IMG 2.png").exists()
    assert Image.open(made / "IMG 0.png").size == (128, 128)
    assert summary.kept == ["IMG 0.txt", "IMG 1.png", "IMG 2.png"]


def test_files_that_were_there_are_never_overwritten(source: Path) -> None:
    made = source.parent / "data set"
    photo(made / "IMG 1.png", (10, 10))
    before = (made / "IMG 1.png").read_bytes()
    summary = work(source).run()
    assert (made / "IMG 1.png").read_bytes() == before
    assert [name for name, _ in summary.failed] == ["IMG 1.jpg"]
    assert "not made by preprocessing" in summary.failed[0][1]
    assert summary.sources == 2


def test_names_that_would_collide_are_told_apart(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    for name in ("a.jpg", "a.png", "sub/a.jpg", "A.bmp", "a-2.png", "sub_a.png"):
        photo(source / name)
    summary = work(source, recursive=True, split=True, split_threshold=1.0).run()
    names = shown(source.parent / "data set")
    assert summary.sources == 6
    assert summary.images == len(names)
    assert len({name.casefold() for name in names}) == len(names)


def test_sub_folders_only_if_asked(source: Path) -> None:
    photo(source / "holiday" / "beach.jpg")
    for name in ("left out/IMG 9.jpg", "debug/IMG 0-debug.png", "holiday/beach_att.png"):
        photo(source / name)
    assert work(source).run().sources == 3
    assert work(source, recursive=True).run().sources == 1
    assert "holiday_beach.png" in shown(source.parent / "data set")


def test_a_destination_within_the_source_is_not_read_again(source: Path) -> None:
    inside = Preprocessing(source, source / "made", PreprocessConfig(**SMALL, recursive=True))
    assert [inside.run().sources, inside.run().sources] == [3, 0]


@pytest.mark.parametrize("destination", [".", "..", "../.."])
def test_a_source_equal_to_or_inside_the_destination_is_refused(source: Path, destination: str) -> None:
    before = contents(source.parent)
    with pytest.raises(ConfigError, match="destination"):
        Preprocessing(source, source / destination, PreprocessConfig(**SMALL)).run()
    assert contents(source.parent) == before


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    for recursive in (False, True):
        with pytest.raises(DatasetError, match="no images"):
            work(tmp_path / "photos", recursive=recursive).run()
    with pytest.raises(DatasetError, match="does not exist"):
        work(tmp_path / "nowhere", recursive=True).run()


@pytest.mark.usefixtures("worker_processes")
def test_broken_files_are_named_and_passed_over(source: Path) -> None:
    (source / "broken.jpg").write_bytes((source / "IMG 0.jpg").read_bytes()[:300])
    (source / "text.png").write_text("no image")
    (source / "empty.gif").touch()
    summary = work(source, flip=True).run()
    assert sorted(name for name, _ in summary.failed) == ["broken.jpg", "empty.gif", "text.png"]
    assert all(reason for _, reason in summary.failed)
    assert summary.sources == 3
    assert len(shown(source.parent / "data set")) == 6


def test_upright_and_of_the_first_frame(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the left side of the file is the top of the image
    photo(source / "turned.jpg", (160, 120), exif=exif)
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("lime", "red")]
    frames[0].save(source / "animated.gif", save_all=True, append_images=frames[1:])
    work(source).run()
    with Image.open(tmp_path / "data set" / "turned.png") as turned:
        assert max(turned.getpixel((32, 5))) < 20 < turned.getpixel((32, 58))[0]
    with Image.open(tmp_path / "data set" / "animated.png") as first:
        assert first.getpixel((32, 32)) == (0, 255, 0)


@pytest.mark.parametrize("ending", ["bmp", "gif", "jpg", "png", "ppm", "tga", "tif", "webp", "ico", "dds"])
def test_formats(tmp_path: Path, ending: str) -> None:
    photo(tmp_path / "photos" / f"a.{ending}", (96, 96))
    assert work(tmp_path / "photos").run().failed == []


@pytest.mark.parametrize(("mode", "fill"), [("I;16", 40_000), ("L", 155), ("CMYK", (0, 255, 255, 0)), ("P", 3), ("1", 1)])
def test_modes(tmp_path: Path, mode: str, fill: object) -> None:
    (tmp_path / "photos").mkdir()
    Image.new(mode, (96, 96), fill).save(tmp_path / "photos" / "a.tif")
    assert work(tmp_path / "photos").run().failed == []
    with Image.open(tmp_path / "data set" / "a.png") as made:
        assert made.mode == "RGB"
        if mode == "I;16":
            assert abs(made.getpixel((5, 5))[0] - 40_000 / 257) <= 1


@pytest.mark.parametrize("keep", [False, True])
def test_what_is_transparent_becomes_white_or_stays(tmp_path: Path, keep: bool) -> None:
    (tmp_path / "photos").mkdir()
    image = Image.new("RGBA", (96, 96), (200, 0, 0, 255))
    ImageDraw.Draw(image).rectangle((0, 0, 47, 96), fill=(0, 0, 0, 0))
    image.save(tmp_path / "photos" / "a.png")
    work(tmp_path / "photos", keep_alpha=keep).run()
    with Image.open(tmp_path / "data set" / "a.png") as made:
        assert made.mode == ("RGBA" if keep else "RGB")
        assert made.getpixel((5, 30)) == ((0, 0, 0, 0) if keep else (255, 255, 255))


def test_a_jpeg_cannot_keep_transparency() -> None:
    with pytest.raises(ConfigError, match="png or webp"):
        PreprocessConfig(keep_alpha=True, format="jpg")


@pytest.mark.parametrize(
    ("action", "expected"),
    [("ignore", "64 x 64"), ("copy", "a caption"), ("prepend", "a caption, 64 x 64"), ("append", "64 x 64, a caption")],
)
def test_captions_are_written_of_each_image_and_joined_with_those_there_are(
    source: Path, action: str, expected: str
) -> None:
    seen: list[Image.Image] = []

    @contextmanager
    def captioning():
        def caption(image: Image.Image) -> str:
            seen.append(image)
            return f"{image.width} x {image.height}"

        yield caption

    plain = work(source, flip=True, existing_captions=action)
    summary = Preprocessing(plain.source, plain.destination, plain.config, (), captioning).run()
    texts = {each.name: each.read_text() for each in plain.destination.glob("*.txt")}
    assert texts["IMG 0.txt"] == texts["IMG 0-flipped.txt"] == expected
    assert texts["IMG 1.txt"] == "64 x 64"
    assert summary.captions == len(texts) == 6
    assert len(seen) == (2 if action == "copy" else 3)  # nothing is captioned twice, or for nothing


def test_images_that_the_captioners_say_nothing_about_are_counted(source: Path) -> None:
    plain = work(source, existing_captions="copy")
    summary = Preprocessing(plain.source, plain.destination, plain.config, (), lambda: nullcontext(lambda image: "")).run()
    assert (summary.captions, summary.without_caption) == (1, 2)
    assert "2 images got no caption: the captioners returned nothing." in summary.lines()


def test_a_caption_that_is_no_text_is_named(source: Path) -> None:
    (source / "IMG 1.txt").write_bytes(b"\xff\xfe\x00caf\xe9")
    summary = work(source, existing_captions="copy").run()
    assert [name for name, _ in summary.failed] == ["IMG 1.jpg"]
    assert "UTF-8" in summary.failed[0][1]
    assert summary.sources == 2


@pytest.mark.usefixtures("worker_processes")
def test_stopped_it_leaves_whole_files_and_continues_from_there(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    for number in range(30):
        photo(source / f"{number:02}.png", (400, 300))
    done: list[int] = []
    summary = work(source, flip=True).run(lambda now, total: done.append(now), lambda: bool(done) and done[-1] >= 5)
    assert summary.stopped
    assert 5 <= summary.sources < 30
    made = shown(tmp_path / "data set")
    assert len(made) == 2 * summary.sources
    for name in made:
        with Image.open(tmp_path / "data set" / name) as image:
            image.load()
    again = work(source, flip=True).run()
    assert (again.done_before, again.sources) == (summary.sources, 30 - summary.sources)
    assert len(shown(tmp_path / "data set")) == 60


def test_a_ledger_from_elsewhere_cannot_make_us_remove_files(source: Path) -> None:
    work(source).run()
    made = source.parent / "data set"
    (made / FILE).write_text(
        (made / FILE).read_text().replace('"IMG 1.png"', '"../my photos ö/IMG 1.jpg"'), encoding="utf-8"
    )
    with pytest.raises(ConfigError, match="damaged"):
        work(source, format="webp").run()
    assert (source / "IMG 1.jpg").exists()


def test_what_cannot_be_written_ends_it_with_one_message(source: Path) -> None:
    plain = work(source)
    plain.destination.mkdir()
    (plain.destination / "debug").write_text("no folder")
    broken = work(source, resize="focal", debug_image=True)
    with pytest.raises(DatasetError, match=r"debug.*start again"):
        broken.run()
    assert (plain.destination / "debug").read_text() == "no folder"


def test_a_caption_that_changed_beside_the_photo_is_taken_over(source: Path) -> None:
    work(source, existing_captions="copy").run()
    (source / "IMG 0.txt").write_text("another caption")
    summary = work(source, existing_captions="copy").run()
    assert (summary.sources, summary.done_before) == (1, 2)
    assert (source.parent / "data set" / "IMG 0.txt").read_text() == "another caption"


def test_the_preview_shows_what_would_be_made_and_writes_nothing(source: Path) -> None:
    (source / "IMG 00.png").write_text("no image")
    preview = list(work(source, flip=True, existing_captions="copy").preview(3))
    assert [path.name for path, _, _ in preview] == ["IMG 0.jpg", "IMG 00.png", "IMG 1.jpg"]
    assert [[each.image.size for each in made] for _, made, _ in preview] == [[(64, 64)] * 2, [], [(64, 64)] * 2]
    assert preview[0][2] == "a caption"
    assert preview[1][2] == "it is not an image, or damaged"
    assert not (source.parent / "data set").exists()
    summary_of = work(source, flip=True)
    summary_of.run()
    with Image.open(summary_of.destination / "IMG 0.png") as made:
        assert made.tobytes() == preview[0][1][0].image.tobytes()
