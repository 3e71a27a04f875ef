"""info: describe embedding files and checkpoints."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ti_trainer.errors import EmbeddingFormatError, TITrainerError, explained
from ti_trainer.hosts.diffusers.defaults import MODEL

HELP = "describe embeddings, by any tool, and checkpoints"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "files", type=Path, nargs="+", metavar="FILE", help="embeddings, checkpoints, model folders or 'embedded'"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per file, one per line")


def run(args: argparse.Namespace) -> int:
    """Describe each file; exit code 1 if any of them cannot be read."""
    failed = False
    for file in args.files:
        facts = _described(file)
        failed |= facts["error"] is not None
        print(json.dumps(facts) if args.json else line(file, facts))
    return int(failed)


def describe(file: Path) -> dict[str, Any]:
    """Facts about an embedding: name, name in prompts, step, family, [V, D] by text encoder, checkpoint, error.

    Of a LoRA with embeddings in it, `bundled` has [V, D] by key for each of them.
    """
    from ti_trainer import formats
    from ti_trainer.formats import bundles

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
        found = bundles.bundled(file)
        if found is not None:
            return facts | {"word": None, "bundled": {name: found.shapes(name) for name in found.words}}
        return facts | {"error": explained(error)}
    same = ("name", "step", "family", "checkpoint", "checkpoint_hash", "info")
    vectors = {encoder: list(each.shape) for encoder, each in embedding.arrays.items()}
    described = {name: getattr(embedding, name) for name in same} | {"vectors": vectors}
    return facts | described | {"negative": negative and negative.name}


def describe_model(path: Path) -> dict[str, Any]:
    """Facts about a checkpoint or a model folder: its spec, widths of its embeddings, image size, error."""
    from ti_trainer.hosts.diffusers import loading

    try:
        spec, parts = loading.look(str(path))
    except (TITrainerError, OSError) as error:
        return {"file": str(path), "model": None, "error": explained(error)}
    widths = {each.name: each.width for each in parts.text_encoders}
    size_px = parts.unet.config.sample_size * 8
    return {"file": str(path), "model": str(spec), **asdict(spec), "widths": widths, "size_px": size_px, "error": None}


def _described(path: Path) -> dict[str, Any]:
    """Describe a file as an embedding, or as a model if it is one."""
    if (path / "model_index.json").is_file() or (str(path) == MODEL and not path.exists()):
        return describe_model(path)
    facts = describe(path)
    if facts["error"] and path.is_file() and path.suffix.lower() in (".safetensors", ".ckpt"):
        model = describe_model(path)
        if model["error"] is None or "a checkpoint" in facts["error"]:
            return model
    return facts


def line(file: Path, facts: dict[str, Any]) -> str:
    """The facts of `describe` or `describe_model` in one line."""
    if facts["error"]:
        return f"{file}: {facts['error']}"
    if "model" in facts:
        widths = ", ".join(f"{encoder} {width}" for encoder, width in facts["widths"].items())
        return f"{file}: a checkpoint, {facts['model']}, for images of {facts['size_px']} px, embedding width {widths}"
    if "bundled" in facts:
        inside = "; ".join(f"{name}, vectors {_shapes(shapes)}" for name, shapes in facts["bundled"].items())
        return f"{file}: a LoRA with embeddings in it: {inside}"
    vectors = _shapes(facts["vectors"])
    trained = f"trained {facts['step']} steps" if facts["step"] else "steps unknown"
    checkpoint = f", on {facts['checkpoint']}" if facts["checkpoint"] else ""
    negative = f", with the negative {facts['negative']}" if facts["negative"] else ""
    word = facts["word"] or facts["name"]
    about = "".join(f"; {each}" for each in (facts["info"].get("repaired"), _about_the_word(file, facts)) if each)
    return f"{file}: {word}, {facts['family']}, vectors {vectors}, {trained}{checkpoint}{negative}{about}"


def _shapes(shapes: dict[str, list[int]]) -> str:
    return ", ".join(f"{encoder} {' x '.join(map(str, shape))}" for encoder, shape in shapes.items())


def _about_the_word(file: Path, facts: dict[str, Any]) -> str:
    """What is unexpected about its name in prompts; "" if nothing is."""
    from ti_trainer.formats import embeddings_dir

    if facts["word"] is None:
        return ""
    if other := embeddings_dir.used_instead(file):
        return f"in this folder, {other.stem} in a prompt means {other.name}, not this file"
    if facts["name"] == facts["word"]:
        return ""
    note = f"its name in prompts is the file's, {facts['word']}, but the name stored in it is {facts['name']}"
    return f"{note} (AUTOMATIC1111's WebUI uses that one)" if facts["info"].get("format") == "card" else note
