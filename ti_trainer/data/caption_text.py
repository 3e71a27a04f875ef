"""Read caption files. Needs no torch, because preprocessing workers import it."""

from __future__ import annotations

from pathlib import Path

from ti_trainer.errors import DatasetError

MOST_BYTES = 1_000_000  # of a caption, or of a template


def read_caption(file: Path) -> str:
    """The text of a caption file; DatasetError if it is not text, or far too long for a caption."""
    if (size := file.stat().st_size) > MOST_BYTES:
        message = f"The caption {file} has {size} bytes, expected at most {MOST_BYTES}: is it something else?"
        raise DatasetError(message)
    try:
        text = file.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        message = f"The caption {file} is not UTF-8 text ({error.reason}): save it as UTF-8."
        raise DatasetError(message) from error
    if "\0" in text:
        message = f"The caption {file} is not UTF-8 text (it has NUL bytes, as UTF-16 does): save it as UTF-8."
        raise DatasetError(message)
    return text
