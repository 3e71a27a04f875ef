"""doctor: what to paste into an issue: versions, the device, and training steps in each memory mode and precision."""

from __future__ import annotations

import argparse

from ti_trainer.commands.terminal import number_of
from ti_trainer.errors import ConfigError
from ti_trainer.hosts.diffusers import defaults

HELP = "check the installation and the GPU, and print a report to paste into an issue"
SHAPES = ("sd15", "sdxl")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--model", default=defaults.MODEL, help="the checkpoint to train with, as in train (default: %(default)s)"
    )
    parser.add_argument("--shape", choices=SHAPES, help="instead of --model: random weights in the shape of this family")
    parser.add_argument(
        "--size", type=number_of(int), default=0, metavar="PX", help="width and height (default: the model's own size)"
    )
    parser.add_argument("--device", default=defaults.DEVICE, help="auto, cpu, cuda, cuda:1 or mps (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Print the report line by line, as it is measured."""
    if args.size and (args.size % 64 or not 64 <= args.size <= 4096):
        message = f"--size: found {args.size}, expected a multiple of 64 from 64 to 4096."
        raise ConfigError(message)
    from ti_trainer.benchmark import diagnosis

    print("```")
    for line in diagnosis.report(args.model, args.shape, args.device, args.size):
        print(line, flush=True)
    print("```")
    return 0
