"""info: what embedding files hold."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ti_trainer import formats
from ti_trainer.errors import EmbeddingFormatError

HELP = "say what embedding files hold, whoever wrote them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what it takes."""
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="embeddings of any tool")
    parser.add_argument("--json", action="store_true", help="one JSON object a file, a line each")


def run(args: argparse.Namespace) -> int:
    """Describe each; 1 if any of them cannot be read."""
    failed = False
    for file in args.files:
        facts = describe(file)
        failed |= facts["error"] is not None
        print(json.dumps(facts) if args.json else _in_words(file, facts))
    return int(failed)


def describe(file: Path) -> dict[str, Any]:
    """Name, step, family, vectors as [V, D] by text encoder, checkpoint, error."""
    facts: dict[str, Any] = {
        "file": str(file),
        "name": None,
        "step": None,
        "family": None,
        "vectors": {},
        "checkpoint": None,
    }
    facts |= {"checkpoint_hash": None, "info": {}, "error": None}
    try:
        embedding = formats.read(file)
    except (EmbeddingFormatError, OSError) as error:
        return facts | {"error": str(error)}
    same = ("name", "step", "family", "checkpoint", "checkpoint_hash", "info")
    vectors = {encoder: list(each.shape) for encoder, each in embedding.vectors.items()}
    return facts | {name: getattr(embedding, name) for name in same} | {"vectors": vectors}


def _in_words(file: Path, facts: dict[str, Any]) -> str:
    if facts["error"]:
        return f"{file}: {facts['error']}"
    vectors = ", ".join(f"{encoder} {shape[0]} x {shape[1]}" for encoder, shape in facts["vectors"].items())
    trained = f"trained {facts['step']} steps" if facts["step"] else "no steps known"
    checkpoint = f", on {facts['checkpoint']}" if facts["checkpoint"] else ""
    return f"{file}: {facts['name']}, {facts['family']}, vectors {vectors}, {trained}{checkpoint}"
