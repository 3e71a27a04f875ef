"""What the user writes about a run: a label for the list and notes, in text files of the run folder."""

from __future__ import annotations

from pathlib import Path

from ti_trainer.errors import ConfigError
from ti_trainer.files import write_bytes
from ti_trainer.runs.run_folder import Run

LABEL, NOTES = "label.txt", "notes.txt"
LONGEST_LABEL, LONGEST_NOTES = 80, 20_000  # characters


def read_label(run: Run) -> str:
    """The run's label, in one line; "" if it has none."""
    return " ".join(_read(run.path / LABEL, LONGEST_LABEL).split())


def read_notes(run: Run) -> str:
    """The run's notes; "" if it has none."""
    return _read(run.path / NOTES, LONGEST_NOTES)


def save(run: Run, label: str, notes: str) -> None:
    """Write the label and the notes; an empty text removes its file. ConfigError if one is too long, OSError."""
    label, notes = " ".join(label.split()), notes.strip()
    for what, text, longest in (("Label", label, LONGEST_LABEL), ("Notes", notes, LONGEST_NOTES)):
        if len(text) > longest:
            message = f"{what}: found {len(text)} characters, expected at most {longest:,}."
            raise ConfigError(message)
    for name, text in ((LABEL, label), (NOTES, notes)):
        if text:
            write_bytes(run.path / name, text.encode("utf-8", "replace"))
        else:
            (run.path / name).unlink(missing_ok=True)


def _read(path: Path, longest: int) -> str:
    try:
        with path.open("rb") as file:
            return file.read(4 * longest).decode("utf-8", "replace").strip()[:longest]
    except OSError:  # there is none
        return ""
