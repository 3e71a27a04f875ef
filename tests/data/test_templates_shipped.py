"""The prompt templates that ship: each line trains the word, and holds the caption where its file's name says so."""

from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "textual_inversion_templates"
KINDS = {"none", "subject", "subject_filewords", "style", "style_filewords"}


def test_the_kinds_that_people_know_are_there():
    assert {path.stem for path in FOLDER.glob("*.txt")} == KINDS


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_each_line_names_the_word_once_and_the_caption_where_promised(kind):
    lines = (FOLDER / f"{kind}.txt").read_text(encoding="ascii").splitlines()
    assert lines
    assert len(set(lines)) == len(lines)
    for line in lines:
        assert line == line.strip()
        assert line.count("[name]") == 1
        assert line.count("[filewords]") == (1 if kind.endswith("_filewords") else 0)
        assert "[" not in line.replace("[name]", "").replace("[filewords]", "")
