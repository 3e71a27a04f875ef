"""create: a new embedding from a text."""

from __future__ import annotations

import argparse
import sys

from ti_trainer.commands.common import add_host_arguments, host_of, naming_overwrite
from ti_trainer.commands.terminal import number_of
from ti_trainer.embedding import negative_name
from ti_trainer.formats import embeddings_dir
from ti_trainer.formats.naming import name_warnings
from ti_trainer.host import ModelOptions
from ti_trainer.runs import locks

HELP = "make a new embedding, which starts as a text that you choose"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what it takes."""
    parser.add_argument("name", metavar="NAME", help="the new word, which is also the file's name")
    parser.add_argument(
        "--init-text",
        default="*",
        metavar="TEXT",
        help="a word or two for what it is near to, such as 'star' (default: %(default)r)",
    )
    parser.add_argument(
        "--num-vectors",
        type=number_of(int),
        default=2,
        metavar="N",
        help="tokens of a prompt it takes; 1 to 8 is usual (default: %(default)s)",
    )
    parser.add_argument(
        "--negative-vectors",
        type=number_of(int),
        default=0,
        metavar="N",
        help="for DreamArtist (train --negative): also make NAME-neg, for what it is not, of N tokens; 3 to 10 is usual "
        "(default: %(default)s, none)",
    )
    parser.add_argument(
        "--negative-init-text", default="*", metavar="TEXT", help="what NAME-neg starts as (default: %(default)r)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an embedding of that name")
    add_host_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Create it and say where it is."""
    host = host_of(args)
    model = host.open_model(ModelOptions("fp32"))
    folder, overwrite = host.embeddings_dir, args.overwrite
    word = (args.name, args.init_text, args.num_vectors)
    names = (args.name, negative_name(args.name))
    with naming_overwrite(), locks.embeddings_held(folder, names[: 2 if args.negative_vectors else 1]):
        embeddings_dir.free_file(folder, args.name, overwrite=overwrite)
        warnings = name_warnings(model, folder, args.name)
        if args.negative_vectors:
            unwanted = (args.negative_init_text, args.negative_vectors)
            path, negative = embeddings_dir.create_pair(folder, model, word, unwanted, overwrite=overwrite)
        else:
            path = embeddings_dir.create(folder, model, *word, overwrite=overwrite)
    tokens = len(next(iter(model.token_embeddings(args.init_text).values())))
    print(f"Created {path}: vectors: {args.num_vectors}, from {args.init_text!r} (tokens: {tokens}).")
    for warning in warnings:
        print(warning, file=sys.stderr)
    if args.negative_vectors:
        print(f"Created {negative}: vectors: {args.negative_vectors}. Train both with --negative.")
    return 0
