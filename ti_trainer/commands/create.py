"""create: a new embedding, initialized with the token embeddings of a text."""

from __future__ import annotations

import argparse
import sys

from ti_trainer.commands.common import add_host_arguments, host_of, naming_overwrite
from ti_trainer.commands.terminal import number_of
from ti_trainer.host import Host, ModelOptions
from ti_trainer.prompts import NO_TEXT

HELP = "create an embedding that starts from a text"
INIT_TEXT, NUM_VECTORS = NO_TEXT, 2  # defaults


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", metavar="NAME", help="name of the embedding in prompts and of its file")
    add_start_arguments(parser, INIT_TEXT, NUM_VECTORS)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing embedding with this name")
    add_host_arguments(parser)


def add_start_arguments(
    parser: argparse._ActionsContainer, init_text: str | None, num_vectors: int | None, when: str = ""
) -> None:
    """What a new embedding starts from; None as a default to know whether an argument was given."""
    parser.add_argument(
        "--init-text",
        default=init_text,
        metavar="TEXT",
        help=f"{when}initial text: a word or two describing the subject, such as 'star' (default: {INIT_TEXT!r})",
    )
    parser.add_argument(
        "--num-vectors",
        type=number_of(int),
        default=num_vectors,
        metavar="N",
        help=f"{when}number of vectors, each of which takes one token of a prompt; 1 to 8 is usual (default: {NUM_VECTORS})",
    )
    parser.add_argument(
        "--negative-vectors",
        type=number_of(int),
        default=None if num_vectors is None else 0,
        metavar="N",
        help=f"{when}for DreamArtist (train --negative): also create NAME-neg with N vectors; 3 to 10 is usual (default: 0)",
    )
    parser.add_argument(
        "--negative-init-text",
        default=init_text,
        metavar="TEXT",
        help=f"{when}initial text of NAME-neg (default: {INIT_TEXT!r})",
    )


def run(args: argparse.Namespace) -> int:
    """Create the embedding and print where it is."""
    host = host_of(args)
    with naming_overwrite():
        create(host, ModelOptions("fp32"), args.name, args, overwrite=args.overwrite)
    if args.negative_vectors:
        print("Train both with --negative.")
    return 0


def create(host: Host, options: ModelOptions, name: str, args: argparse.Namespace, *, overwrite: bool = False) -> list[str]:
    """Create the embedding, and its negative if `args` asks for one, with defaults for what is None; print where it is.

    Returns the warnings, which were printed.

    ConfigError if the name is taken or cannot be used.
    """
    from ti_trainer.embedding import negative_name
    from ti_trainer.formats import embeddings_dir
    from ti_trainer.formats.naming import name_warnings
    from ti_trainer.runs import locks

    init_text = INIT_TEXT if args.init_text is None else args.init_text
    num_vectors = NUM_VECTORS if args.num_vectors is None else args.num_vectors
    negative_text = INIT_TEXT if args.negative_init_text is None else args.negative_init_text
    model, folder = host.open_model(options), host.embeddings_dir
    names, negative = (name, negative_name(name)), None
    with locks.embeddings_held(folder, names[: 2 if args.negative_vectors else 1]):
        embeddings_dir.free_file(folder, name, overwrite=overwrite)
        warnings = name_warnings(model, folder, name)
        start = (name, init_text, num_vectors)
        if args.negative_vectors:
            negative_start = (negative_text, args.negative_vectors)
            create_pair, warn = embeddings_dir.create_pair, warnings.append
            path, negative = create_pair(folder, model, start, negative_start, overwrite=overwrite, warn=warn)
        else:
            path = embeddings_dir.create(folder, model, *start, overwrite=overwrite, warn=warnings.append)
    tokens = len(next(iter(model.token_embeddings(init_text).values())))
    print(f"Created {path}: vectors: {num_vectors}, from {init_text!r} (tokens: {tokens}).")
    for warning in warnings:
        print(warning, file=sys.stderr)
    if negative is not None:
        print(f"Created {negative}: vectors: {args.negative_vectors}, from {negative_text!r}.")
    return warnings
