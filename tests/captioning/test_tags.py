"""Tags as captions have them, and what becomes of captions that there are."""

from __future__ import annotations

from typing import Any

import pytest

from ti_trainer.captioning.tags import merged, tags_text
from ti_trainer.config.preprocessing import PreprocessConfig

TAGS = [("long_hair", 0.5), ("1girl", 0.99), ("^_^", 0.7), ("saber_(fate)", 0.9)]


def write(tags: list[tuple[str, float]] = TAGS, **options: Any) -> str:
    return tags_text(tags, PreprocessConfig(**options))


def test_the_surest_tag_comes_first() -> None:
    assert write() == r"1girl, saber \(fate\), ^_^, long hair"


def test_tags_can_be_in_the_order_of_the_alphabet() -> None:
    assert write(tag_order="alphabetical") == r"1girl, ^_^, long hair, saber \(fate\)"


def test_equally_sure_tags_keep_their_order() -> None:
    assert write([("b", 0.5), ("a", 0.5), ("c", 0.6)]) == "c, b, a"


def test_underscores_and_brackets_can_stay() -> None:
    assert write(tag_spaces=False, tag_escape=False) == "1girl, saber_(fate), ^_^, long_hair"


@pytest.mark.parametrize(
    "face",
    "0_0 +_+ +_- ._. =_= >_< 3_3 6_9 >_o @_@ ^_^ o_o O_o u_u x_x |_| ||_|| <o>_<o> <|>_<|> ._.; \\_/".split(),  # noqa: SIM905
)
def test_faces_keep_their_underscore(face: str) -> None:
    assert write([(face, 1.0)], tag_escape=False) == face


def test_brackets_of_a_face_are_escaped_and_nothing_else_of_it_changes() -> None:
    assert write([("(o)_(o)", 1.0)]) == r"\(o\)_\(o\)"


@pytest.mark.parametrize(
    ("tag", "text"),
    [
        ("v-shaped_brow", "v-shaped brow"),
        ("2_girls", "2 girls"),
        ("k-on!_x", "k-on! x"),
        ("d.va_(overwatch)", "d.va (overwatch)"),
        ("長い_髪", "長い 髪"),
    ],
)
def test_words_get_spaces(tag: str, text: str) -> None:
    assert write([(tag, 1.0)], tag_escape=False) == text


def test_a_backslash_is_escaped_too() -> None:
    assert write([("\\(^o^)/", 1.0)]) == r"\\\(^o^\)/"


@pytest.mark.parametrize("unwanted", ["long_hair", "long hair", " Long Hair ,", "x, LONG_HAIR", "long_hair,^_^x"])
def test_excluded_tags_are_left_out_however_they_are_written(unwanted: str) -> None:
    assert write(tag_exclude=unwanted) == r"1girl, saber \(fate\), ^_^"


@pytest.mark.parametrize("unwanted", ["saber_(fate)", "saber (fate)", r"saber \(fate\)"])
def test_a_tag_with_brackets_can_be_excluded(unwanted: str) -> None:
    assert "saber" not in write(tag_exclude=unwanted)


def test_a_part_of_a_tag_excludes_nothing() -> None:
    assert write(tag_exclude="hair, girl,, ") == write()


def test_a_tag_stands_there_once() -> None:
    assert write([("long_hair", 0.4), ("long hair", 0.9)]) == "long hair"


def test_no_tags_are_an_empty_text() -> None:
    assert write([]) == ""


@pytest.mark.parametrize(
    ("action", "existing", "new", "expected"),
    [
        ("ignore", "old", "new", "new"),
        ("copy", "old", "new", "old"),
        ("copy", None, "new", "new"),
        ("copy", "", "new", "new"),
        ("prepend", "old", "new", "old, new"),
        ("append", "old", "new", "new, old"),
        ("prepend", None, "new", "new"),
        ("append", "old", "", "old"),
        ("prepend", "old,\n", " new ", "old, new"),
        ("append", " , ", "new", "new"),
        ("ignore", "old", "", ""),
    ],
)
def test_what_becomes_of_a_caption_that_there_is(action: Any, existing: str | None, new: str, expected: str) -> None:
    assert merged(existing, new, action) == expected
