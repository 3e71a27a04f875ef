"""A table of losses that something damaged: the run goes on with what can be read, and keeps the rest aside."""

from __future__ import annotations

from pathlib import Path

import pytest

from ti_trainer.runs.run_folder import Run
from ti_trainer.runs.tables import CSV_COLUMNS

HEADER = ",".join(CSV_COLUMNS).encode() + b"\r\n"
ROWS = [b"%d,0,%d,0.%d000000,0.005\r\n" % (step, step, step) for step in range(1, 6)]
WHOLE = HEADER + b"".join(ROWS)
DAMAGES = {  # what is in the file -> the steps that can still be read
    "binary": (bytes(range(256)) * 8 + b"\n", []),
    "NUL bytes": (HEADER + ROWS[0] + b"\0" * 300 + b"\n" + ROWS[1], [1, 2]),
    "a line that ends early": (HEADER + ROWS[0] + b"2,0,2\r\n" + ROWS[2], [1, 3]),
    "two lines that ran into each other": (HEADER + ROWS[0] + ROWS[1][:7] + ROWS[2] + ROWS[3], [1, 4]),
    "no names of columns": (b"".join(ROWS[:3]), [1, 2, 3]),
    "other columns": (b"step,loss\r\n1,0.5\r\n2,0.5\r\n", []),
    "words for numbers": (HEADER + ROWS[0] + b"two,0,2,0.2,0.005\r\n", [1]),
    "decimal commas": (HEADER + ROWS[0] + b"2;0;2;0,2;0,005\r\n", [1]),
    "not UTF-8": (HEADER + ROWS[0] + b"2,0,\xff\xfe,0.2,0.005\r\n" + ROWS[2], [1, 3]),
}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path, "x-word", {"name": "x-word"})


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_can_be_read_stays_and_the_old_file_is_kept_aside(run: Run, damage: str) -> None:
    (content, steps), warned = DAMAGES[damage], []
    run.loss_file.write_bytes(content)
    assert [row["step"] for row in run.losses()] == steps
    run.forget_after(3, warned.append)
    aside = run.path / "textual_inversion_loss.csv.damaged"
    assert aside.read_bytes() == content
    assert len(warned) == 1
    assert "textual_inversion_loss.csv is damaged" in warned[0]
    assert str(aside) in warned[0]
    assert [row["step"] for row in run.losses()] == [step for step in steps if step <= 3]
    warned.clear()
    run.forget_after(3, warned.append)
    assert warned == [], "it is mended"


def test_a_second_one_does_not_take_the_place_of_the_first(run: Run) -> None:
    for content in (b"first\n", b"second\n"):
        run.loss_file.write_bytes(content)
        run.forget_after(1, print)
    kept = sorted(path.read_bytes() for path in run.path.glob("*.damaged*"))
    assert kept == [b"first\n", b"second\n"]


def test_a_folder_in_its_place_is_set_aside(run: Run) -> None:
    run.validation_file.mkdir()
    warned: list[str] = []
    assert run.validation_losses() == []
    run.forget_after(1, warned.append)
    assert "it is not a file" in warned[0]
    assert not run.validation_file.exists()


@pytest.mark.parametrize("content", [WHOLE, WHOLE.replace(b"\r\n", b"\n"), WHOLE + b"6,0,6,0.", b"\xef\xbb\xbf" + WHOLE])
def test_what_is_usual_is_no_damage(run: Run, content: bytes) -> None:
    run.loss_file.write_bytes(content)
    warned: list[str] = []
    run.forget_after(4, warned.append)
    assert warned == []
    assert run.loss_file.read_bytes() == HEADER + b"".join(ROWS[:4])
