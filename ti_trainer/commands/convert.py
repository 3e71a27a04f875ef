"""convert: write an embedding in another format."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ti_trainer.errors import ConfigError

if TYPE_CHECKING:
    from ti_trainer.embedding import Embedding

HELP = "convert an embedding to another format"
FORMATS = ("safetensors", "webui", "diffusers-bin", "card", "diffusers", "kohya", "kohya-pt", "onetrainer")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("source", type=Path, metavar="IN", help="an embedding in any supported format")
    parser.add_argument("target", type=Path, metavar="OUT", help="the file to write; its extension determines the format")
    parser.add_argument("--format", choices=FORMATS, help="for extensions that several formats share")
    parser.add_argument("--name", metavar="NAME", help="name stored in the new file (default: the one in IN)")
    parser.add_argument("--negative", action="store_true", help="convert the negative embedding in a card instead")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")


def run(args: argparse.Namespace) -> int:
    """Convert the file and print a summary."""
    from ti_trainer import formats
    from ti_trainer.files import checked_name

    if args.target.exists() and not args.overwrite:
        message = f"{args.target} exists: choose another name, or pass --overwrite."
        raise ConfigError(message)
    embedding = formats.read(args.source)
    if args.negative:
        embedding = _negative(args.source)
    if args.name is not None:
        embedding = embedding.renamed(checked_name(args.name))
    formats.write(embedding, args.target, args.format)
    print(f"Wrote {args.target}: {embedding.name}, {embedding.num_vectors} vectors, {embedding.family}.")
    if repaired := embedding.info.get("repaired"):
        print(f"{args.source}: {repaired}.")
    return 0


def _negative(card: Path) -> Embedding:
    """The negative embedding in a card; ConfigError if there is none."""
    from ti_trainer import formats

    negative = formats.read_negative(card)
    if negative is None:
        message = (
            f"{card} has no second, negative embedding; expected the .png card of an embedding (not of its negative) that "
            "was trained with DreamArtist. Leave out --negative to convert what is in this card."
        )
        raise ConfigError(message)
    return negative
