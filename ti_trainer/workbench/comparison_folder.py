"""The folder of a comparison: found again by its settings, so that it is continued."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ti_trainer import __version__
from ti_trainer.errors import ConfigError
from ti_trainer.files import free_path, write_bytes
from ti_trainer.wording import counted, encodable

FOLDER = "comparisons"  # within the log folder
SETTINGS, GRID = "comparison.json", "grid.png"
LARGEST_BYTES = 2**24
MOST_LISTED = 100


def find_or_make(log_dir: Path, title: str, settings: Mapping[str, Any]) -> tuple[Path, str]:
    """The folder with these settings, or a new one; and a sentence if there are others of the same name."""
    parent, wanted = log_dir / FOLDER, json.loads(json.dumps(settings))
    of_title = re.compile(re.escape(title) + r"(-\d+)?")
    folders = sorted(path for path in parent.glob("*") if path.is_dir() and of_title.fullmatch(path.name))
    for folder in folders:
        if saved(folder).get("settings") == wanted:
            made = _made(folder)
            return folder, f"Continued in {folder}, which has the same settings and {made} of the images." if made else ""
    folder = free_path(parent / title, "-")
    folder.mkdir(parents=True)
    content = {"ti_trainer": __version__, "settings": wanted}
    try:
        save(folder, content)
    except OSError:
        folder.rmdir()
        raise
    return folder, f"This is a new comparison: {folders[-1].name} was made with other settings." if folders else ""


@dataclass(frozen=True)
class Earlier:
    """A comparison that was begun before: its folder, and the settings in it."""

    folder: Path
    settings: Mapping[str, Any]

    @cached_property
    def label(self) -> str:
        """Its name and how much of it is there, for a list that is read again with `find`."""
        counts = [self.settings.get(name) for name in ("candidates", "weights", "prompts", "seeds")]
        total = math.prod(len(each) if isinstance(each, list) else 0 for each in counts)
        return f"{encodable(self.folder.name)} ({_made(self.folder)} of {counted(total, 'image')})"

    @property
    def measured_with(self) -> tuple[str, str]:
        """The folders of the CLIP or DINO and of the images that it was measured with; empty if it was not."""
        results = saved(self.folder).get("results")
        found = results.get("similarity") if isinstance(results, dict) else None
        found = found if isinstance(found, dict) else {}
        return str(found.get("network") or ""), str(found.get("images") or "")


def earlier(log_dir: Path) -> list[Earlier]:
    """The newest comparisons, the latest first."""
    found = sorted((log_dir / FOLDER).glob(f"*/{SETTINGS}"), key=_time_of, reverse=True)[:MOST_LISTED]
    read = [(path.parent, saved(path.parent).get("settings")) for path in found]
    return [Earlier(folder, settings) for folder, settings in read if isinstance(settings, dict)]


def find(log_dir: Path, label: str) -> Earlier:
    """The comparison with this label, which may have got more images since; ConfigError if there is none."""
    name = label.rpartition(" (")[0]
    for each in earlier(log_dir):
        if encodable(each.folder.name) == name:
            return each
    message = f"There is no comparison {name or label} any more: choose another one in the list."
    raise ConfigError(message)


def _time_of(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # deleted just now
        return 0.0


def _made(folder: Path) -> int:
    return len(list(folder.glob("[0-9]*-[0-9]*.png")))


def save(folder: Path, content: Mapping[str, Any]) -> None:
    """Write comparison.json."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    write_bytes(folder / SETTINGS, text.encode(errors="backslashreplace"))  # which is how JSON escapes, too


def saved(folder: Path) -> dict[str, Any]:
    """What comparison.json holds; empty if it is missing or damaged."""
    path = folder / SETTINGS
    try:
        if path.stat().st_size > LARGEST_BYTES:
            return {}
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
