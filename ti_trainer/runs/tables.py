"""The CSV tables of a run: append a line, and read them again after crashes and full disks."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

from ti_trainer.files import described, free_path, write_bytes

CSV_COLUMNS = ("step", "epoch", "epoch_step", "loss", "learn_rate")
VALIDATION_COLUMNS = ("step", "loss")
LARGEST_BYTES = 256 * 2**20  # about ten million lines


def append_row(path: Path, columns: Sequence[str], row: Sequence[object]) -> None:
    """Append a line to a table, after a header if the table is new. On OSError nothing of the line is left in the file."""
    text = io.StringIO(newline="")
    table = csv.writer(text)
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        if size == 0:
            table.writerow(columns)
        table.writerow(row)
        line = text.getvalue().encode()
        try:
            while line:
                line = line[file.write(line) :]
        except OSError as error:
            os.truncate(path, size)  # half a line would damage the next one
            raise described(error, path) from error


def rows_of(path: Path, columns: Sequence[str]) -> tuple[list[dict[str, str]], str]:
    """The valid lines of a table, and what is wrong with the others ("" if nothing is).

    A last line without a line break, as a crash leaves it, is skipped without a message.
    """
    if not path.exists():
        return [], ""
    try:
        if not path.is_file():
            return [], "it is not a file"
        if path.stat().st_size > LARGEST_BYTES:
            return [], f"it is larger than {LARGEST_BYTES // 2**20} MB"
        text = path.read_bytes().decode("utf-8", "replace").removeprefix("\ufeff")
    except OSError as error:
        return [], error.strerror or str(error)
    lines = text[: text.rfind("\n") + 1].splitlines()
    found = [_row(line, columns) for line in lines[1:] if line]
    rows = [row for row in found if row is not None]
    wrong = len(found) - len(rows)
    if lines and lines[0].split(",") != list(columns):
        first = _row(lines[0], columns)  # the header may have been removed
        return ([first] if first else []) + rows, "its first line does not name the columns"
    return rows, f"{wrong} of its {len(found)} lines cannot be read" if wrong else ""


def forget_after(path: Path, columns: Sequence[str], step: int) -> str:
    """Remove lines beyond this step, which will be written again. A damaged file is renamed first, with a warning."""
    rows, wrong = rows_of(path, columns)
    warning = ""
    if wrong:
        renamed = free_path(path.with_name(f"{path.name}.damaged"), "-")
        path.replace(renamed)
        warning = f"{path.name} is damaged ({wrong}). Its {len(rows)} valid lines are kept; the old file is {renamed}."
    if rows:
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, columns, extrasaction="ignore")
        table.writeheader()
        table.writerows(row for row in rows if int(row["step"]) <= step)
        write_bytes(path, text.getvalue().encode())
    return warning


def _row(line: str, columns: Sequence[str]) -> dict[str, str] | None:
    """A line's values by column; None unless each is a number and the step an integer."""
    values = line.split(",")
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        return None
    whole = values[0].isdecimal() and values[0].isascii()
    usable = len(numbers) == len(columns) and whole
    return dict(zip(columns, values, strict=True)) if usable else None
