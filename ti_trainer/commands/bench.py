"""bench: speed and memory of the training loop, and start-up time, compared with other trainers."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ti_trainer import tiny_model
from ti_trainer.benchmark import peers
from ti_trainer.commands.common import add_host_arguments
from ti_trainer.commands.terminal import number_of
from ti_trainer.config.training import options
from ti_trainer.errors import ConfigError
from ti_trainer.hosts.diffusers import defaults

HELP = "measure training speed, memory and start-up time, compared with a bare loop and other trainers"
SHAPES = ("sd15", "sdxl")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    known = " ".join(each if each == "webui" else f"{each}=DIR" for each in peers.PEERS)
    memory = next(each.choices for each in options() if each.name == "memory")
    parser.add_argument(
        "--startup",
        action="store_true",
        help="measure the CPU time of whole commands instead: --help, info, convert, create, train",
    )
    parser.add_argument("--shape", choices=SHAPES, help="instead of --model: random weights in the shape of this family")
    parser.add_argument(
        "--size", type=number_of(int), metavar="PX", help="width and height of the images (default: the model's own size)"
    )
    parser.add_argument(
        "--precision", choices=["auto", "fp32", "fp16", "bf16"], default="auto", help="of the U-Net (default: auto)"
    )
    parser.add_argument(
        "--steps", type=number_of(int), metavar="N", help="steps of each trainer (default: 200, with --startup 300)"
    )
    parser.add_argument(
        "--batch-sizes", type=number_of(int), nargs="+", default=[1, 4], metavar="B", help="batch sizes (default: 1 4)"
    )
    parser.add_argument(
        "--images", type=Path, default=tiny_model.DEMO, metavar="DIR", help="images (default: those of the demo)"
    )
    parser.add_argument(
        "--against",
        nargs="*",
        default=[],
        metavar="PEER",
        help=f"other trainers: {known}. DIR is a checkout of their repository; webui is a loop like the WebUI's",
    )
    parser.add_argument(
        "--peer-python", nargs="*", default=[], metavar="PEER=PYTHON", help="the Python with the packages of a peer"
    )
    parser.add_argument("--memory", choices=memory, default="none", help="as in train, also for the bare loop")
    parser.add_argument("--compile", action="store_true", help="also measure with the network compiled")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_host_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, and print a table or JSON."""
    _check(args)
    pythons = dict(_python(text) for text in args.peer_python)
    against = [peers.peer_of(text, pythons) for text in args.against]
    for each in against:
        each.script_path()
    if args.startup:
        from ti_trainer.benchmark import startup

        facts = startup.measure(args.images, args.steps or startup.STEPS, against)
        print(json.dumps(facts) if args.json else startup.table(facts))
        return 0
    from ti_trainer.benchmark import speed

    facts = speed.measure_all(args, against)
    print(json.dumps(facts) if args.json else speed.table(facts))
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.size is not None and (args.size % 64 or not 64 <= args.size <= 4096):
        message = f"--size: found {args.size}, expected a multiple of 64 from 64 to 4096."
        raise ConfigError(message)
    if args.compile and args.memory != "none":
        message = f"--compile and --memory {args.memory}: a compiled network stays on the GPU; leave one of them out."
        raise ConfigError(message)
    if args.shape and args.model != defaults.MODEL:
        message = f"--shape {args.shape} and --model {args.model}: a shape has random weights; leave one of them out."
        raise ConfigError(message)
    if args.startup and (args.shape or args.compile or args.model != defaults.MODEL):
        message = "--startup measures on the embedded model: leave out --shape, --compile and --model."
        raise ConfigError(message)


def _python(text: str) -> tuple[str, Path]:
    name, _, python = text.partition("=")
    if name not in peers.PEERS or not python:
        message = f"--peer-python {text}: expected PEER=PYTHON with PEER one of {', '.join(peers.PEERS)}."
        raise ConfigError(message)
    return name, Path(python)
