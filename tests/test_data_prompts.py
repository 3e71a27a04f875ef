"""What is said about a picture: captions, templates, tags."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ti_trainer.data.prompts import SHIPPED, Prompter, caption_of, load_template, templates
from ti_trainer.errors import ConfigError, DatasetError

TAGS = "a, b, c, d"


def prompts(count: int, caption: str = TAGS, **options: object) -> list[str]:
    prompter = Prompter("x-word", ("[name]: [filewords]",), **options)
    return [prompter(caption, np.random.default_rng(number)) for number in range(count)]


def test_the_text_file_beside_a_picture_is_its_caption(tmp_path: Path) -> None:
    (tmp_path / "001-a cat.txt").write_text("\ufeff a dog, höflich \n", encoding="utf-8")
    assert caption_of(tmp_path / "001-a cat.png", r"\w+", "_") == "a dog, höflich"


def test_an_empty_text_file_is_an_empty_caption(tmp_path: Path) -> None:
    (tmp_path / "a cat.txt").touch()
    assert caption_of(tmp_path / "a cat.png") == ""


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("a cat.png", "a cat"),
        ("0001-a cat.png", "a cat"),
        ("00012-0-a cat, sitting.jpeg", "a cat, sitting"),
        ("12 a cat.png", "a cat"),
        ("2021-05-03.png", ""),
        ("cat 12.png", "cat 12"),
        ("v1.5 cat.png", "v1.5 cat"),
    ],
)
def test_without_one_it_is_the_name_less_what_cameras_and_scripts_put_before_it(name: str, caption: str) -> None:
    assert caption_of(Path("nowhere") / name) == caption


@pytest.mark.parametrize(
    ("regex", "join", "caption"),
    [
        (r"[a-z]+", ", ", "black, cat, on, mat"),
        (r"[a-z]{4,}", " ", "black"),
        (r"_([a-z]+)", "-", "cat-on-mat"),
        ("", ", ", "black_cat_on_mat"),
    ],
)
def test_a_regular_expression_picks_words_of_the_name(regex: str, join: str, caption: str) -> None:
    assert caption_of(Path("nowhere/003-black_cat_on_mat.png"), regex, join) == caption


def test_a_caption_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DatasetError, match=r"x\.txt is not UTF-8.*save it as UTF-8"):
        caption_of(tmp_path / "x.png")


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
    [("", "is empty"), ("\n \n", "is empty"), ("[name]\na photo of [filewords]\n", r"without \[name\].*a photo of")],
)
def test_templates_that_teach_nothing_are_refused(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "mine.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=expected):
        load_template(str(path))


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
