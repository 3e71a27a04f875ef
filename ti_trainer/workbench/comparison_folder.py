"""The folder of a comparison: found again by its settings, so that it is continued."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ti_trainer import __version__
from ti_trainer.files import free_path, write_bytes

FOLDER = "comparisons"  # within the log folder
SETTINGS, GRID = "comparison.json", "grid.png"
LARGEST_BYTES = 2**24


def find_or_make(log_dir: Path, title: str, settings: Mapping[str, Any]) -> tuple[Path, str]:
    """The folder with these settings, or a new one; and a sentence if there are others of the same name."""
    parent, wanted = log_dir / FOLDER, json.loads(json.dumps(settings))
    of_title = re.compile(re.escape(title) + r"(-\d+)?")
    folders = sorted(path for path in parent.glob("*") if path.is_dir() and of_title.fullmatch(path.name))
    for folder in folders:
        if saved(folder).get("settings") == wanted:
            made = len(list(folder.glob("[0-9]*-[0-9]*.png")))
            return folder, f"Continued in {folder}, which has the same settings and {made} of the images." if made else ""
    folder = free_path(parent / title, "-")
    folder.mkdir(parents=True)
    content = {"ti_trainer": __version__, "settings": wanted}
    write_bytes(folder / SETTINGS, json.dumps(content, indent=2, ensure_ascii=False).encode())
    earlier = f"The settings differ from those of {folders[-1].name}, so this is a new comparison." if folders else ""
    return folder, earlier


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
