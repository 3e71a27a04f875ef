"""generate: see what a prompt draws, with the embeddings of the folder."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from PIL import Image

from ti_trainer.commands.common import add_host_arguments, add_model_options, host_of, model_options
from ti_trainer.commands.terminal import number_of
from ti_trainer.errors import ConfigError
from ti_trainer.files import atomic
from ti_trainer.formats import embeddings_dir
from ti_trainer.formats.naming import prompt_report
from ti_trainer.host import GenerationRequest

log = logging.getLogger(__name__)
HELP = "draw an image from a prompt, in which your embeddings are words"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what it takes."""
    parser.add_argument("prompt", metavar="PROMPT", help='such as "an image of NAME"')
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="where the image goes (.png)")
    parser.add_argument("--negative-prompt", default="", metavar="TEXT", help="what it shall not show")
    parser.add_argument(
        "--seed", type=number_of(int), default=GenerationRequest.seed, metavar="N", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--steps",
        type=number_of(int),
        default=GenerationRequest.steps,
        metavar="N",
        help="sampling steps (default: %(default)s)",
    )
    parser.add_argument(
        "--cfg-scale",
        type=number_of(float),
        default=GenerationRequest.cfg_scale,
        metavar="X",
        help="how strictly to follow the prompt (default: %(default)s)",
    )
    parser.add_argument("--width", type=number_of(int), default=0, metavar="PX", help="0: what the model was made for")
    parser.add_argument("--height", type=number_of(int), default=0, metavar="PX", help="0: what the model was made for")
    add_host_arguments(parser)
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Draw it, and say where it is and which embeddings are in it."""
    _check(args)
    host = host_of(args)
    model = host.open_model(model_options(args))
    if not host.embeddings_dir.is_dir():
        print(f"There is no folder of embeddings {host.embeddings_dir}, so none can be used.", file=sys.stderr)
    words, passed_over = embeddings_dir.usable(host.embeddings_dir, model)
    report = prompt_report(model, {"prompt": args.prompt, "negative prompt": args.negative_prompt}, words, passed_over)
    for each in passed_over:
        if not any(each.reason in warning for warning in report.warnings):
            log.warning("Passed over: %s", each.reason)
    for warning in report.warnings:
        print(warning, file=sys.stderr)
    request = GenerationRequest(
        args.prompt, args.negative_prompt, args.steps, args.cfg_scale, args.seed, args.width, args.height
    )
    image = host.generate(model, request, words)
    with atomic(args.out) as new:
        image.save(new)
    print(f"Wrote {args.out}. {report.used}")
    return 0


def _check(args: argparse.Namespace) -> None:
    """ConfigError for what cannot be drawn or written, before a model is loaded."""
    if Image.registered_extensions().get(args.out.suffix.lower()) not in Image.SAVE:
        message = f"{args.out} cannot be written: expected an image's ending, such as .png, .jpg or .webp."
        raise ConfigError(message)
    for flag, value, low, high in (
        ("steps", args.steps, 1, 1000),
        ("seed", args.seed, 0, 2**32 - 1),
        ("cfg-scale", args.cfg_scale, 1, 30),
    ):
        if not low <= value <= high:
            message = f"--{flag}: found {value}, expected at least {low} and at most {high}."
            raise ConfigError(message)
    for flag, value in (("width", args.width), ("height", args.height)):
        if value < 0 or value % 8:
            message = f"--{flag}: found {value}, expected a multiple of 8, or 0 for what the model was made for."
            raise ConfigError(message)
