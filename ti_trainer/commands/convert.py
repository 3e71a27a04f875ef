"""convert: an embedding from one tool's file to another's."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from ti_trainer import formats
from ti_trainer.errors import ConfigError
from ti_trainer.files import checked_name

HELP = "turn an embedding of one tool into a file for another"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what it takes."""
    parser.add_argument("source", type=Path, metavar="IN", help="any embedding that this or another tool wrote")
    parser.add_argument("target", type=Path, metavar="OUT", help="the new file; its ending says the format")
    parser.add_argument("--format", choices=list(formats.FORMATS), help="where the ending fits more than one")
    parser.add_argument("--name", metavar="NAME", help="the word it stands for (default: as in IN)")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is there")


def run(args: argparse.Namespace) -> int:
    """Convert and say what was written."""
    if args.target.exists() and not args.overwrite:
        message = f"{args.target} is there already: choose another name, or pass --overwrite."
        raise ConfigError(message)
    embedding = formats.read(args.source)
    if args.name is not None:
        embedding = replace(embedding, name=checked_name(args.name))
    formats.write(embedding, args.target, args.format)
    print(f"Wrote {args.target}: {embedding.name}, {embedding.num_vectors} vectors, {embedding.family}.")
    return 0
