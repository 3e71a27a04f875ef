"""library: list the embeddings folder."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ti_trainer.hosts.diffusers import defaults

if TYPE_CHECKING:
    from ti_trainer.workbench.library import Entry

HELP = "list the embeddings folder: family, vectors and step of each file"
SORTS = ("name", "date", "family", "vectors")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("search", nargs="*", metavar="WORD", help="only files whose name or folder contains these")
    parser.add_argument("--sort", choices=SORTS, default="name", help="(default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per file, one per line")
    text = "folder with the embeddings (default: %(default)s)"
    parser.add_argument("--embeddings-dir", type=Path, default=defaults.EMBEDDINGS_DIR, metavar="DIR", help=text)


def run(args: argparse.Namespace) -> int:
    """List the files."""
    from ti_trainer.workbench.library import Library, Query

    shelf = Library(args.embeddings_dir, whole_s=float("inf"))
    listing = shelf.listing(Query(" ".join(args.search), args.sort))
    for entry in shelf.read(listing.entries):
        place = shelf.place_of(entry.path)
        print(json.dumps({"file": place, **_facts(entry)}) if args.json else f"{place}: {_line(entry)}")
    if not listing.total and not args.json:
        print(f"There are no embeddings in {args.embeddings_dir}.")
    return 0


def _facts(entry: Entry) -> dict[str, Any]:
    known = entry.outline
    facts: dict[str, Any] = {"name": entry.name, "family": None, "vectors": None, "step": None, "checkpoint": None}
    if known is not None:
        facts |= {"family": known.family, "vectors": known.num_vectors, "step": known.step, "checkpoint": known.checkpoint}
    return {**facts, "used_instead": entry.used_instead and entry.used_instead.name, "error": entry.problem or None}


def _line(entry: Entry) -> str:
    from ti_trainer.wording import counted

    known = entry.outline
    if known is None:
        return entry.problem
    parts = [known.family, counted(known.num_vectors, "vector"), f"{known.step} steps" if known.step else "steps unknown"]
    return ", ".join(parts) + (f"; {reason}" if (reason := entry.unusable(None)) else "")
