"""generate: generate an image from a prompt with your embeddings."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from ti_trainer.commands.common import add_host_arguments, add_model_options, host_of, model_options
from ti_trainer.commands.terminal import number_of
from ti_trainer.errors import ConfigError
from ti_trainer.host import GenerationRequest

log = logging.getLogger(__name__)
HELP = "generate an image from a prompt that may contain your embeddings"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("prompt", metavar="PROMPT", help='such as "a photo of NAME"')
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="image file to write, such as cat.png")
    parser.add_argument("--negative-prompt", default="", metavar="TEXT", help="what the image should not show")
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
        help="guidance scale: higher values follow the prompt more closely (default: %(default)s)",
    )
    parser.add_argument(
        "--width", type=number_of(int), default=0, metavar="PX", help="multiple of 8; 0 is the model's own size (default: 0)"
    )
    parser.add_argument(
        "--height",
        type=number_of(int),
        default=0,
        metavar="PX",
        help="multiple of 8; 0 is the model's own size (default: 0)",
    )
    add_host_arguments(parser)
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Generate the image, and print where it is and which embeddings were used."""
    from ti_trainer.files import atomic
    from ti_trainer.formats import embeddings_dir
    from ti_trainer.formats.naming import prompt_report

    _check(args)
    host = host_of(args)
    model = host.open_model(model_options(args))
    if not host.embeddings_dir.is_dir():
        print(f"No embeddings are used: there is no folder {host.embeddings_dir}.", file=sys.stderr)
    embeddings, skipped = embeddings_dir.usable(host.embeddings_dir, model)
    report = prompt_report(model, {"prompt": args.prompt, "negative prompt": args.negative_prompt}, embeddings, skipped)
    for each in skipped:
        if not any(each.reason in warning for warning in report.warnings):
            log.warning("Skipped: %s", each.reason)
    for warning in report.warnings:
        print(warning, file=sys.stderr)
    request = GenerationRequest(
        args.prompt, args.negative_prompt, args.steps, args.cfg_scale, args.seed, args.width, args.height
    )
    image = host.generate(model, request, embeddings)
    with atomic(args.out) as new:
        image.save(new)
    print(f"Wrote {args.out}. {report.used}")
    return 0


def _check(args: argparse.Namespace) -> None:
    """ConfigError for values that cannot be used, before the model is loaded."""
    from PIL import Image

    if Image.registered_extensions().get(args.out.suffix.lower()) not in Image.SAVE:
        message = f"{args.out} cannot be written: expected an image file, such as .png, .jpg or .webp."
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
            message = f"--{flag}: found {value}, expected a multiple of 8, or 0 for the model's own size."
            raise ConfigError(message)
