"""info: what embedding files and checkpoints hold."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ti_trainer import formats
from ti_trainer.errors import EmbeddingFormatError, TITrainerError
from ti_trainer.formats import embeddings_dir

HELP = "say what embedding files hold, whoever wrote them, and what checkpoints are"
EMBEDDED = "embedded"  # as --model has it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what it takes."""
    parser.add_argument(
        "files", type=Path, nargs="+", metavar="FILE", help="embeddings of any tool, checkpoints, or 'embedded'"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a file, a line each")


def run(args: argparse.Namespace) -> int:
    """Describe each; 1 if any of them cannot be read."""
    failed = False
    for file in args.files:
        facts = _described(file)
        failed |= facts["error"] is not None
        print(json.dumps(facts) if args.json else _in_words(file, facts))
    return int(failed)


def describe(file: Path) -> dict[str, Any]:
    """Name, word in prompts, step, family, vectors as [V, D] by text encoder, checkpoint, error."""
    facts: dict[str, Any] = {
        "file": str(file),
        "word": None if file.is_dir() else file.stem,
        "name": None,
        "step": None,
        "family": None,
        "vectors": {},
        "checkpoint": None,
    }
    facts |= {"checkpoint_hash": None, "info": {}, "negative": None, "error": None}
    try:
        embedding, negative = formats.read(file), formats.read_negative(file)
    except (EmbeddingFormatError, OSError) as error:
        return facts | {"error": str(error)}
    same = ("name", "step", "family", "checkpoint", "checkpoint_hash", "info")
    vectors = {encoder: list(each.shape) for encoder, each in embedding.vectors.items()}
    described = {name: getattr(embedding, name) for name in same} | {"vectors": vectors}
    return facts | described | {"negative": negative and negative.name}


def describe_model(path: Path) -> dict[str, Any]:
    """What a checkpoint, or a folder in diffusers' layout, is: in words and one by one, widths of a vector, size, error."""
    from ti_trainer.hosts.diffusers import loading

    try:
        spec, parts = loading.look(str(path))
    except (TITrainerError, OSError) as error:
        return {"file": str(path), "model": None, "error": str(error)}
    widths = {each.name: each.width for each in parts.text_encoders}
    size_px = parts.unet.config.sample_size * 8
    return {"file": str(path), "model": str(spec), **asdict(spec), "widths": widths, "size_px": size_px, "error": None}


def _described(path: Path) -> dict[str, Any]:
    """As an embedding, unless it is a model."""
    if (path / "model_index.json").is_file() or (str(path) == EMBEDDED and not path.exists()):
        return describe_model(path)
    facts = describe(path)
    if facts["error"] and path.is_file() and path.suffix.lower() in (".safetensors", ".ckpt"):
        model = describe_model(path)
        if model["error"] is None or "a checkpoint" in facts["error"]:
            return model
    return facts


def _in_words(file: Path, facts: dict[str, Any]) -> str:
    if facts["error"]:
        return f"{file}: {facts['error']}"
    if "model" in facts:
        widths = ", ".join(f"{encoder} {width}" for encoder, width in facts["widths"].items())
        return f"{file}: a checkpoint, {facts['model']}, made for {facts['size_px']} px; its words have vectors {widths}"
    vectors = ", ".join(f"{encoder} {shape[0]} x {shape[1]}" for encoder, shape in facts["vectors"].items())
    trained = f"trained {facts['step']} steps" if facts["step"] else "no steps known"
    checkpoint = f", on {facts['checkpoint']}" if facts["checkpoint"] else ""
    negative = f", with its negative {facts['negative']}" if facts["negative"] else ""
    word = facts["word"] or facts["name"]
    about = "".join(f"; {each}" for each in (facts["info"].get("repaired"), _about_the_word(file, facts)) if each)
    return f"{file}: {word}, {facts['family']}, vectors {vectors}, {trained}{checkpoint}{negative}{about}"


def _about_the_word(file: Path, facts: dict[str, Any]) -> str:
    """What to know before it is written in a prompt."""
    if facts["word"] is None:
        return ""
    if other := embeddings_dir.used_instead(file):
        return f"where it lies, the word {other.stem} means {other.name}, not this file"
    if facts["name"] == facts["word"]:
        return ""
    called = f"its word in prompts is {facts['word']}, the file's name, though inside it is called {facts['name']}"
    return f"{called} (the word in AUTOMATIC1111's WebUI)" if facts["info"].get("format") == "card" else called
