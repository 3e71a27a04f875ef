"""merge: combine embeddings by an expression, or make one from text, without training."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ti_trainer.commands.common import add_host_arguments, host_of, naming_overwrite
from ti_trainer.commands.terminal import number_of
from ti_trainer.errors import ConfigError

if TYPE_CHECKING:
    from ti_trainer.hosts.diffusers.host import StandaloneHost
    from ti_trainer.workbench.merge import Merged

HELP = "combine embeddings by an expression, or make one from text, without training"
FAILED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "expression",
        metavar="EXPRESSION",
        help="such as \"0.5 * a + 0.5 * b\", 'cat(a, b[0:2])' or 'text(\"red hair, (freckles:1.2)\")'; names of embeddings "
        "with characters other than letters, digits and _ are written in quotes",
    )
    parser.add_argument(
        "-o",
        "--name",
        metavar="NAME",
        help="save the result under this name in the embeddings folder (default: only show it)",
    )
    parser.add_argument(
        "--embedding",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="a file that NAME in the expression stands for; without NAME=, the file's name; may be repeated",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing embedding with this name")
    parser.add_argument(
        "--preview", type=Path, metavar="FILE", help="write an image without and one with the result, side by side"
    )
    parser.add_argument(
        "--prompt", default="a photo of [name]", metavar="TEXT", help="the preview's prompt (default: %(default)r)"
    )
    parser.add_argument("--negative-prompt", default="", metavar="TEXT", help="the preview's negative prompt")
    parser.add_argument("--seed", type=number_of(int), default=1, metavar="N", help="the preview's seed (default: 1)")
    add_host_arguments(parser)
    refuse = parser.error

    def error(message: str) -> NoReturn:
        """A usage error; an expression such as -a is taken for an option, which the message does not show."""
        hint = (
            ". Put -- before one that begins with a minus, as in: merge -o NAME -- '-a'" if "EXPRESSION" in message else ""
        )
        refuse(message + hint)

    parser.error = error  # type: ignore[method-assign]


def run(args: argparse.Namespace) -> int:
    """Compute the expression, print what it is, and write what was asked for."""
    from ti_trainer.workbench.expression import ExpressionError
    from ti_trainer.workbench.merge import Names, merge, norms_of, save

    _check_preview(args)
    host, names = host_of(args), Names(args.embeddings_dir, _given(args.embedding))
    if args.name is not None:
        _check_name(host, args)
    try:
        merged = merge(args.expression, names, host.open_model)
    except ExpressionError as error:
        print(f"Error: {error}\n{error.hint}", file=sys.stderr)
        return FAILED
    for each in merged.warnings:
        print(each, file=sys.stderr)
    print(merged.about)
    for label, value in norms_of(merged.embedding, host.open_model() if merged.uses_model else None):
        print(f"{label}: {value}")
    if args.preview is not None:
        _write_preview(host, merged, args)
    if args.name is None:
        print("Not saved: pass -o NAME to save it.")
        return 0
    with naming_overwrite():
        path = save(host, merged, args.name, overwrite=args.overwrite, warn=lambda text: print(text, file=sys.stderr))
    print(f"Wrote {path}. It can be trained further from step 0.")
    return 0


def _check_preview(args: argparse.Namespace) -> None:
    """ConfigError for an image file or a seed that cannot be used, before anything is computed."""
    from PIL import Image

    if args.preview is not None and Image.registered_extensions().get(args.preview.suffix.lower()) not in Image.SAVE:
        message = f"{args.preview} cannot be written: expected an image file, such as .png, .jpg or .webp."
        raise ConfigError(message)
    if not 0 <= args.seed < 2**32:
        message = f"--seed: found {args.seed}, expected at least 0 and at most {2**32 - 1}."
        raise ConfigError(message)


def _given(arguments: list[str]) -> dict[str, Path]:
    """Files by name; ConfigError if two have the same."""
    given: dict[str, Path] = {}
    for each in arguments:
        name, equals, file = ("", "", each) if Path(each).is_file() else each.partition("=")
        path = Path(file if equals else each)
        name = name.strip() if equals else path.stem
        if not name or name.casefold() in map(str.casefold, given):
            message = f"--embedding: found {each!r}, expected NAME=FILE with a name that is not given twice."
            raise ConfigError(message)
        given[name] = path
    return given


def _check_name(host: StandaloneHost, args: argparse.Namespace) -> None:
    """ConfigError for a name that cannot be used, before anything is computed."""
    from ti_trainer.formats import embeddings_dir

    with naming_overwrite():
        embeddings_dir.free_file(host.embeddings_dir, args.name, overwrite=args.overwrite)


def _write_preview(host: StandaloneHost, merged: Merged, args: argparse.Namespace) -> None:
    from ti_trainer.files import atomic
    from ti_trainer.host import GenerationRequest
    from ti_trainer.runs.plots import Row, labelled
    from ti_trainer.workbench.merge import with_and_without

    request = GenerationRequest(args.prompt, args.negative_prompt, seed=args.seed)
    images = dict(with_and_without(host, host.open_model(), merged.embedding, request))
    with atomic(args.preview) as new:
        labelled([Row(args.prompt, list(images.values()), list(images))]).save(new)
    print(f"Wrote {args.preview}.")
