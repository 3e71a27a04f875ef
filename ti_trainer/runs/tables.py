"""A run's tables: CSV files that grow by a line at a time, and are read again after crashes and full disks."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

from ti_trainer.files import described, free_path, write_bytes

CSV_COLUMNS = ("step", "epoch", "epoch_step", "loss", "learn_rate")
VALIDATION_COLUMNS = ("step", "loss")
LARGEST_BYTES = 256 * 2**20  # ten million steps, a line each


def append_row(path: Path, columns: Sequence[str], row: Sequence[object]) -> None:
    """Add a line to a table, under the names of its columns if it is the first; all of it, or OSError and nothing."""
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
            os.truncate(path, size)  # half a line would spoil the one after it
            raise described(error, path) from error


def rows_of(path: Path, columns: Sequence[str]) -> tuple[list[dict[str, str]], str]:
    """The lines of a table that can be used, and what is wrong with the others, "" if nothing.

    A last line without its end, which a crash cut off, is left out in silence.
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
        first = _row(lines[0], columns)  # somebody cut the names off
        return ([first] if first else []) + rows, "its first line does not name the columns"
    return rows, f"{wrong} of its {len(found)} lines cannot be read" if wrong else ""


def forget_after(path: Path, columns: Sequence[str], step: int) -> str:
    """Leave out lines beyond this step: they will be written again. What could not be read is set aside; then says so."""
    rows, wrong = rows_of(path, columns)
    said = ""
    if wrong:
        aside = free_path(path.with_name(f"{path.name}.damaged"), "-")
        path.replace(aside)
        said = (
            f"{path.name} is damaged ({wrong}): it goes on with {len(rows)} lines that can be read. The old file is {aside}."
        )
    if rows:
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, columns, extrasaction="ignore")
        table.writeheader()
        table.writerows(row for row in rows if int(row["step"]) <= step)
        write_bytes(path, text.getvalue().encode())
    return said


def _row(line: str, columns: Sequence[str]) -> dict[str, str] | None:
    """A line's values by column; None unless each is a number and the step a whole one."""
    values = line.split(",")
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        return None
    whole = values[0].isdecimal() and values[0].isascii()
    usable = len(numbers) == len(columns) and whole
    return dict(zip(columns, values, strict=True)) if usable else None
