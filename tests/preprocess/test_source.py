"""What is taken of a folder and its subfolders, under which names, with which captions; and what is said of the rest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from test_runner import SMALL, photo, shown

from ti_trainer.config.preprocessing import PreprocessConfig
from ti_trainer.errors import ConfigError
from ti_trainer.preprocess.manifest import FILE
from ti_trainer.preprocess.runner import Preprocessing
from ti_trainer.preprocess.source import words_of

FIFOS = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a Windows without named pipes")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        photo(tmp_path / "photos" / name)
    return tmp_path / "photos"


def work(source: Path, **options: object) -> Preprocessing:
    return Preprocessing(source, source.parent / "data set", PreprocessConfig(**SMALL, **options))


def captions(made: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(made.glob("*.txt"))}


@pytest.mark.parametrize("name", ["a.txt", "a.TXT", "a.caption", "a.png.txt"])
def test_captions_are_copied_unless_told_otherwise(source: Path, name: str) -> None:
    (source / name).write_text("a hat", encoding="utf-8")
    summary = work(source).run()
    assert (summary.captions, captions(source.parent / "data set")) == (1, {"a.txt": "a hat"})
    assert work(source).run().done_before == 2
    (source / name).write_text("a scarf", encoding="utf-8")
    assert work(source).run().sources == 1
    assert captions(source.parent / "data set") == {"a.txt": "a scarf"}
    work(source, existing_captions="ignore").run()
    assert captions(source.parent / "data set") == {}


def test_the_preview_shows_the_caption_that_is_copied(source: Path) -> None:
    (source / "b.caption").write_text("a hat", encoding="utf-8")
    assert [said for _, _, said in work(source).preview(2)] == ["", "a hat"]


@pytest.mark.parametrize("recursive", [False, True])
def test_hidden_files_and_folders_are_passed_over(source: Path, recursive: bool) -> None:
    for name in (".ipynb_checkpoints/a-checkpoint.png", ".c.png", "sub/.d.png", "sub/.thumbs/e.png", "sub/f.png"):
        photo(source / name)
    summary = work(source, recursive=recursive).run()
    assert shown(source.parent / "data set") == ["a.png", "b.png", *(["sub_f.png"] if recursive else [])]
    assert summary.sources == (3 if recursive else 2)


def test_folders_of_kohya_give_captions_and_names_without_their_repeats(source: Path) -> None:
    for name in ("10_sks star/01.png", "10_sks star/02.png", "5_sks star/01.png", "7/01.png", "1_2/01.png"):
        photo(source / name)
    (source / "10_sks star" / "02.txt").write_text("a hat", encoding="utf-8")
    summary = work(source, recursive=True).run()
    made = source.parent / "data set"
    assert [name for name in shown(made) if name.endswith(".png")] == [
        *("1_2_01.png", "7_01.png", "a.png", "b.png", "sks star_01.png", "sks star_01_2.png", "sks star_02.png")
    ]
    assert captions(made) == {"sks star_01.txt": "sks star", "sks star_01_2.txt": "sks star", "sks star_02.txt": "a hat"}
    assert any("Repeats are not used" in line and "10_sks star, 5_sks star" in line for line in summary.lines())
    work(source, recursive=True, existing_captions="ignore").run()
    assert captions(made) == {}


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("10_cat", "cat"),
        ("1_sks Hund", "sks Hund"),
        ("3_猫", "猫"),
        ("10_1girl", "1girl"),
        ("10_(cat)", "(cat)"),
        ("2024_rome", ""),
        ("2100_rome", "rome"),
        ("10", ""),
        ("2024_01_05", ""),
        ("cat", ""),
        ("_cat", ""),
    ],
)
def test_the_words_of_a_folder(folder: str, words: str) -> None:
    assert words_of(folder) == words


def test_what_is_not_used_is_said_by_ending_and_count(source: Path) -> None:
    for name in ("x.mp4", "y.MP4", "z.cr2", "lonely.txt", "meta.json"):
        (source / name).write_bytes(b"something")
    (source / "forest.png").mkdir()
    photo(source / "more" / "c.png")
    said = "\n".join(work(source).run().lines())
    for part in ("2 .mp4", "1 .cr2", "lonely.txt", "meta.json", "forest.png", "more (1 image)"):
        assert part in said


@pytest.mark.usefixtures("without_image_plugins")
def test_images_that_need_a_package_are_counted_with_its_name(source: Path) -> None:
    (source / "IMG_0001.HEIC").write_bytes(b"\0\0\0 ftypheic" + bytes(64))
    assert any("1 .heic" in line and "install pillow-heif" in line for line in work(source).run().lines())


@FIFOS
def test_pipes_and_links_in_circles_neither_stop_us_nor_repeat_anything(source: Path) -> None:
    os.mkfifo(source / "pipe.png")
    os.mkfifo(source / "a.txt")
    photo(source / "sub" / "c.png")
    for link, to in (("around", "."), ("sub/up", ".."), ("itself", "itself"), ("itself.png", "itself.png")):
        (source / link).symlink_to(to)
    (source / "sub" / "a again.png").symlink_to("../a.png")
    made = source.parent / "data set"
    made.mkdir()
    for link in ("around", "b.txt"):
        (made / link).symlink_to(link)
    os.mkfifo(made / "sub_c.txt")
    (source / "sub" / "c.txt").write_text("a hat")
    (source / "b.txt").write_text("a scarf")
    summary = work(source, recursive=True).run()
    assert (summary.sources, summary.failed) == (3, [])
    assert sorted(path.name for path in made.glob("*.png")) == ["a.png", "b.png", "sub_c.png"]
    assert summary.kept == ["b.txt", "sub_c.txt"], "what somebody put there stays"
    assert work(source, recursive=True).run().done_before == 3


def test_a_link_to_itself_is_no_folder(tmp_path: Path, source: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ConfigError, match="no folder"):
        Preprocessing(source, tmp_path / "loop", PreprocessConfig()).check()
    with pytest.raises(ConfigError, match="mask directory"):
        Preprocessing(source, tmp_path / "made", PreprocessConfig(masks=str(tmp_path / "loop"))).check()


@FIFOS
def test_a_pipe_in_the_place_of_what_we_note_is_refused(source: Path) -> None:
    made = source.parent / "data set"
    made.mkdir()
    os.mkfifo(made / FILE)
    with pytest.raises(ConfigError, match="is not a regular file"):
        work(source).run()
