"""convert: an embedding from one tool's file to another's."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from ti_trainer import formats
from ti_trainer.embedding import Embedding
from ti_trainer.errors import ConfigError
from ti_trainer.files import checked_name

HELP = "turn an embedding of one tool into a file for another"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what it takes."""
    parser.add_argument("source", type=Path, metavar="IN", help="any embedding that this or another tool wrote")
    parser.add_argument("target", type=Path, metavar="OUT", help="the new file; its ending says the format")
    parser.add_argument("--format", choices=list(formats.FORMATS), help="where the ending fits more than one")
    parser.add_argument("--name", metavar="NAME", help="the word it stands for (default: as in IN)")
    parser.add_argument("--negative", action="store_true", help="the negative embedding that a card carries, instead")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is there")


def run(args: argparse.Namespace) -> int:
    """Convert and say what was written."""
    if args.target.exists() and not args.overwrite:
        message = f"{args.target} is there already: choose another name, or pass --overwrite."
        raise ConfigError(message)
    embedding = formats.read(args.source)
    if args.negative:
        embedding = _negative(args.source)
    if args.name is not None:
        embedding = replace(embedding, name=checked_name(args.name))
    formats.write(embedding, args.target, args.format)
    print(f"Wrote {args.target}: {embedding.name}, {embedding.num_vectors} vectors, {embedding.family}.")
    if repaired := embedding.info.get("repaired"):
        print(f"Of {args.source}: {repaired}.")
    return 0


def _negative(card: Path) -> Embedding:
    """The negative embedding in a card; ConfigError if there is none."""
    negative = formats.read_negative(card)
    if negative is None:
        message = (
            f"{card} carries no negative embedding: expected the .png card of a word that was trained with DreamArtist, as "
            "one lies in the run's folder image_embeddings. Leave --negative out for the embedding itself."
        )
        raise ConfigError(message)
    return negative
