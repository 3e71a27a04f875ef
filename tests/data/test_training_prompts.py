"""What is said about an image: captions, templates, tags."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ti_trainer.data.caption_text import read_caption
from ti_trainer.data.prompts import SHIPPED, Prompter, load_plain, load_template, name_caption, templates
from ti_trainer.errors import ConfigError, DatasetError

TAGS = "a, b, c, d"


def prompts(count: int, caption: str = TAGS, **options: object) -> list[str]:
    prompter = Prompter("x-word", ("[name]: [filewords]",), **options)
    return [prompter(caption, np.random.default_rng(number)) for number in range(count)]


def test_a_caption_file_is_read_without_what_is_around_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\ufeff a dog, höflich \n", encoding="utf-8")
    assert read_caption(tmp_path / "a.txt") == "a dog, höflich"


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("a cat.png", "a cat"),
        ("0001-a cat.png", "a cat"),
        ("00012-0-a cat, sitting.jpeg", "a cat, sitting"),
        ("12 a cat.png", "a cat"),
        ("10_sks star_01.png", "sks star"),
        ("_a cat-2-flipped.png", "a cat"),
        ("a cat (3).png", "a cat"),
        ("cat 12.png", "cat 12"),
        ("v1.5 cat.png", "v1.5 cat"),
        ("赤い帽子_01.png", "赤い帽子"),
        ("01 - red hat.png", "red hat"),
        ("01. red hat.png", "red hat"),
        ("0003_cat.png", "cat"),
        ("00012-3456789-a cat.png", "a cat"),
        ("3d render of a house.png", "3d render of a house"),
        ("1girl, solo.png", "1girl, solo"),
        ("2 dogs.png", "2 dogs"),
        ("0003_2 dogs.png", "2 dogs"),
        ("01_1girl.png", "1girl"),
        ("1.5 litres.png", "1.5 litres"),
        ("snow.png", "snow"),
        ("BlueSnapshot.png", "BlueSnapshot"),
    ],
)
def test_a_file_name_is_read_less_the_numbers_around_it(name: str, caption: str) -> None:
    assert name_caption(Path("nowhere") / name) == caption


NOTHING = [
    "IMG_2031",
    "DSC0001",
    "_DSC1234",
    "DSCF0001",
    "P1010001",
    "PXL_20230101_101010123.MP",
    "IMG-20240101-WA0003",
    "20240501_120000",
    "2021-05-03",
    "00012-3456789",
    "GOPR0001",
    "DJI_0001",
    "01",
    "1",
    "a",
    "image1",
    "photo(3)",
    "Untitled-1",
    "frame_0001",
    "ComfyUI_00001_",
    "tmpx8f3k2",
    "FkQ2hYtXgAA9zP",
    "d41d8cd98f00b204e9800998ecf8427e",
    "3f2b8c1a-0d7e-4a57-9d2e-1f2b3c4d5e6f",
    "a1b2c3d4",
    "_MG_1234",
    "MVIMG_20200101_101010",
    "_DSF1234",
    "RAW_1",
    "CRW_1",
    "HEIC_1",
    "LRM_EXPORT_1",
    "IMG_2031-Edit",
    "InShot_20200101_101010",
    "FaceApp_1234",
    "out-0",
    "seed123",
    "tumblr_p8x7abcQ1qz_1280",
    "EditedPhoto",
]


@pytest.mark.parametrize(
    "stem",
    [
        *NOTHING,
        "Screenshot 2024-05-01 at 10.02.33",
        "Screen Shot 2020-01-01 at 9.00.00 PM",
        "Bildschirmfoto 2024-01-01 um 10.00.00",
        "WhatsApp Image 2024-05-03 at 10.20.30 (1)",
        "photo (3)",
    ],
)
def test_a_name_that_a_camera_or_a_program_gave_says_nothing(stem: str) -> None:
    assert name_caption(Path(f"{stem}.png")) is None


@pytest.mark.parametrize(
    ("regex", "join", "caption"),
    [
        (r"[a-z]+", ", ", "black, cat, on, mat"),
        (r"[a-z]{4,}", " ", "black"),
        (r"_([a-z]+)", "-", "cat-on-mat"),
        (".+", ", ", "black_cat_on_mat"),
        ("dog", " ", None),
    ],
)
def test_a_regular_expression_picks_words_of_the_name(regex: str, join: str, caption: str | None) -> None:
    assert name_caption(Path("nowhere/003-black_cat_on_mat.png"), regex, join) == caption


def test_a_regular_expression_may_take_any_name() -> None:
    assert name_caption(Path("IMG_2031.png"), ".+") == "IMG_2031"


def test_a_caption_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DatasetError, match=r"x\.txt is not UTF-8.*save it as UTF-8"):
        read_caption(tmp_path / "x.txt")
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32-le"):
        (tmp_path / "x.txt").write_text("a hat", encoding=encoding)
        with pytest.raises(DatasetError, match=r"x\.txt is not UTF-8.*save it as UTF-8"):
            read_caption(tmp_path / "x.txt")
    (tmp_path / "x.txt").write_bytes(b"a" * 1_000_001)
    with pytest.raises(DatasetError, match=r"x\.txt has 1000001 bytes"):
        read_caption(tmp_path / "x.txt")


def test_templates_are_files_or_shipped(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("[name]\n\n  a photo of [name]  \n", encoding="utf-8")
    assert load_template(str(path)) == ["[name]", "a photo of [name]"]
    for name in ("subject_filewords", "subject_filewords.txt"):
        lines = load_template(name)
        assert lines == [
            line.strip() for line in (SHIPPED / "subject_filewords.txt").read_text().splitlines() if line.strip()
        ]


def test_templates_of_earlier_folders_come_before_those_of_later_ones_and_ours_last(tmp_path: Path) -> None:
    theirs, more = tmp_path / "theirs", tmp_path / "more"
    for path in (theirs / "one.txt", theirs / "subject.txt", more / "one.txt", more / "two.txt"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"[name] of {path.parent.name}", encoding="utf-8")
    (theirs / "notes.md").write_text("no template")
    folders = (theirs, tmp_path / "missing", more)
    shipped = {path.stem: path for path in SHIPPED.glob("*.txt")}
    assert templates() == shipped
    expected = {**shipped, "one": theirs / "one.txt", "two": more / "two.txt", "subject": theirs / "subject.txt"}
    assert templates(folders) == expected
    assert templates((more, theirs))["one"] == more / "one.txt"
    for name in ("one", "subject", "subject.txt"):
        assert load_template(name, folders) == ["[name] of theirs"]
    assert load_template("two", folders) == ["[name] of more"]
    assert load_template("subject") == load_template(str(SHIPPED / "subject.txt"))
    with pytest.raises(ConfigError, match=r"'three'.*one of one, subject, two, ") as caught:
        load_template("three", folders)
    assert caught.value.option == "template"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x" * 1_000_001, "is larger than"),
        ("[name]" + ", [filewords]" * 1000, "a line of 13006 characters"),
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("[name]\na photo of a hat\n", r"without \[name\].*a photo of"),
    ],
)
def test_templates_that_teach_nothing_are_refused(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "mine.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=expected):
        load_template(str(path))


def test_a_line_may_leave_the_word_to_the_caption(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("[filewords]\n", encoding="utf-8")
    assert load_template(str(tmp_path / "mine.txt")) == ["[filewords]"]


def test_images_without_a_caption_have_a_template_of_their_own(tmp_path: Path) -> None:
    subject, style = load_template("subject"), load_template("style")
    assert (load_plain("subject_filewords"), load_plain("style_filewords.txt")) == (subject, style)
    assert [load_plain(name) for name in ("subject", "none", str(tmp_path / "my_filewords.txt"))] == [[], [], []]
    for name in ("my.txt", "subject.txt"):
        (tmp_path / name).write_text("[name]!", encoding="utf-8")
    assert load_plain(str(tmp_path / "my_filewords.txt")) == ["[name]!"]
    assert load_plain("subject_filewords", [tmp_path]) == ["[name]!"]
    (tmp_path / "my.txt").write_text("[filewords] [name]", encoding="utf-8")  # it needs captions, too
    assert load_plain(str(tmp_path / "my_filewords.txt")) == []


def test_an_image_without_a_caption_gets_a_line_of_the_plain_template_or_one_without_the_caption() -> None:
    rng = np.random.default_rng(0)
    captioned = ("a photo of [name], [filewords]", "[filewords], with [name]", "[filewords]")
    own = Prompter("x-word", captioned)
    assert {own(None, rng) for _ in range(50)} == {"a photo of x-word", "with x-word", "x-word"}
    assert {Prompter("x-word", captioned, plain=("one [name]",))(None, rng) for _ in range(50)} == {"one x-word"}
    both = Prompter("x-word", captioned, negative="x-neg", plain=("one [name]",))
    assert both.pair(None, rng) == ("one x-word", "one x-neg")
    assert own.alone(None) == ""


def test_a_tag_with_the_word_is_never_dropped_where_the_line_has_none() -> None:
    def made(line: str) -> set[str]:
        prompter = Prompter("x-word", (line,), tag_dropout=0.9)
        return {prompter("a hat, x-word, sun", np.random.default_rng(number)) for number in range(50)}

    assert all("x-word" in prompt for prompt in made("[filewords]"))
    assert "[name]: ".replace("[name]", "x-word") in made("[name]: [filewords]")


def test_a_template_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"'no-such'.*subject_filewords"):
        load_template("no-such")


def test_name_and_caption_go_into_the_line() -> None:
    prompter = Prompter("x-word", ("[name] and [name], [filewords]",))
    assert prompter("a cat, [name]", np.random.default_rng(0)) == "x-word and x-word, a cat, x-word"


def test_lines_of_a_template_come_equally_often() -> None:
    prompter, rng = Prompter("x", ("1 [name]", "2 [name]", "3 [name]", "4 [name]")), np.random.default_rng(0)
    counts = Counter(prompter("", rng) for _ in range(4000))
    assert len(counts) == 4
    assert all(abs(count - 1000) < 140 for count in counts.values())  # five standard deviations


def test_captions_are_left_alone_unless_told_otherwise() -> None:
    assert set(prompts(5, "a,b,  c,")) == {"x-word: a,b,  c,"}


def test_shuffling_keeps_every_tag_and_finds_every_order() -> None:
    made = prompts(2400, shuffle_tags=True)
    assert {tuple(sorted(each.removeprefix("x-word: ").split(", "))) for each in made} == {("a", "b", "c", "d")}
    counts = Counter(made)
    assert len(counts) == 24
    assert all(50 <= count <= 150 for count in counts.values())  # 100 each, five standard deviations


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9])
def test_tags_are_dropped_with_the_probability_given_and_in_order(dropout: float) -> None:
    made = [[tag for tag in each.removeprefix("x-word: ").split(", ") if tag] for each in prompts(3000, tag_dropout=dropout)]
    assert all(tags == sorted(tags) for tags in made)
    for tag in "abcd":
        assert sum(tag in tags for tags in made) / len(made) == pytest.approx(1 - dropout, abs=0.05)
    both = sum("a" in tags and "b" in tags for tags in made) / len(made)
    assert both == pytest.approx((1 - dropout) ** 2, abs=0.05)  # each by itself


def test_all_tags_can_be_dropped_and_none() -> None:
    assert set(prompts(20, tag_dropout=1.0)) == {"x-word: "}
    assert {
        tuple(sorted(each.removeprefix("x-word: ").split(", "))) for each in prompts(20, shuffle_tags=True, tag_dropout=0.0)
    } == {("a", "b", "c", "d")}


def test_empty_tags_vanish() -> None:
    assert set(prompts(5, "a,, ,", tag_dropout=0.0001)) == {"x-word: a"}


def test_dropout_and_shuffle_depend_on_the_samples_randomness_only() -> None:
    options = {"shuffle_tags": True, "tag_dropout": 0.3}
    assert prompts(50, **options) == prompts(50, **options)


def test_a_name_with_brackets_is_escaped_where_it_is_put(tmp_path: Path) -> None:
    prompter = Prompter("bad (v2)", ("a [name], [filewords]",), negative="bad (v2)-neg")
    assert prompter.pair("red", np.random.default_rng(0)) == (r"a bad \(v2\), red", r"a bad \(v2\)-neg, red")
    assert prompter.alone("a [name]") == r"a bad \(v2\)"


def test_a_template_with_a_weight_that_is_no_number_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("([name]:1.2)\na ([name]:1.2.3)\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"found 1\.2\.3\), expected a number before the bracket"):
        load_template(str(path))
