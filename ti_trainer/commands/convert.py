"""convert: write embeddings in another format, one file or a whole folder; take one out of a LoRA, or put it in."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ti_trainer.commands.common import naming_overwrite
from ti_trainer.errors import ConfigError

if TYPE_CHECKING:
    from ti_trainer.workbench.convert import Outcome, Wanted

HELP = "convert embeddings to another format, also whole folders, and in and out of LoRAs"
FORMATS = ("safetensors", "webui", "diffusers-bin", "card", "diffusers", "kohya", "kohya-pt", "onetrainer")
DTYPES = ("fp32", "fp16", "bf16")
ENDINGS = (".safetensors", ".pt", ".bin", ".png", ".webp")  # of OUT, where IN is a folder that diffusers saved


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("source", type=Path, metavar="IN", help="an embedding in any supported format, or a folder of them")
    parser.add_argument(
        "target",
        type=Path,
        metavar="OUT",
        help="the file to write, whose extension determines the format; for a folder, the folder to write to",
    )
    parser.add_argument(
        "--format", choices=FORMATS, help="for extensions that several formats share, and for folders (default: safetensors)"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="type of the numbers (default: fp32)")
    parser.add_argument("--name", metavar="NAME", help="name stored in the new file (default: the one in IN)")
    parser.add_argument("--negative", action="store_true", help="convert the negative embedding in a card instead")
    parser.add_argument("--bundled", metavar="NAME", help="IN is a LoRA: take the embedding NAME out of it")
    parser.add_argument(
        "--into",
        type=Path,
        metavar="LORA",
        help="put the embedding into a copy of this LoRA (.safetensors), which OUT will be",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")


def run(args: argparse.Namespace) -> int:
    """Convert and print a summary; for a folder a line for each file. Exit code 1 if any of them failed."""
    from ti_trainer.workbench.convert import Wanted, convert

    wanted = Wanted(args.format, args.dtype, args.name, args.negative, args.bundled, args.into, args.overwrite)
    if args.source.is_dir() and args.target.suffix.lower() not in ENDINGS:
        return _convert_folder(args, wanted)
    try:
        with naming_overwrite():
            outcome = convert(args.source, args.target, wanted)
    except ConfigError as error:
        raise _naming_flags(error) from error
    print(f"Wrote {outcome.target}: {outcome.about}.")
    for note in outcome.notes:
        print(note)
    return 0


def _naming_flags(error: ConfigError) -> ConfigError:
    """The error with the flag that it is about, which the page does not have."""
    if error.option not in ("bundled", "negative", "format"):
        return error
    hint = {"bundled": "--bundled NAME", "negative": "leave out --negative", "format": "--format"}[error.option]
    return ConfigError(f"{str(error).removesuffix('.')} ({hint}).", error.option)


def _convert_folder(args: argparse.Namespace, wanted: Wanted) -> int:
    """Convert a folder and print a table."""
    from ti_trainer.workbench.convert import convert_folder

    for flag, given in (
        ("--name", args.name),
        ("--negative", args.negative),
        ("--bundled", args.bundled),
        ("--into", args.into),
    ):
        if given:
            message = f"{flag}: found a folder, {args.source}, expected one file."
            raise ConfigError(message)
    counts = dict.fromkeys(("converted", "skipped", "failed"), 0)
    for outcome in convert_folder(args.source, args.target, wanted):
        counts[outcome.status] += 1
        print(_line(outcome), file=sys.stderr if outcome.status == "failed" else sys.stdout)
    print(", ".join(f"{count} {status}" for status, count in counts.items()) + ".")
    return int(counts["failed"] > 0)


def _line(outcome: Outcome) -> str:
    """The status, the file, and where it went or why not; then what the new file does not hold."""
    where = f"{outcome.target}: {outcome.about}" if outcome.status == "converted" else outcome.about.rstrip(".")
    return " ".join([f"{outcome.status:9}  {outcome.source} -> {where}.", *outcome.notes])
