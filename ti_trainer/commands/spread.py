"""spread: masks that were painted roughly reach all that looks like what they mark."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from ti_trainer.commands.common import add_host_arguments, host_of
from ti_trainer.data.attention_spread import spread_folder
from ti_trainer.wording import counted

HELP = "spread the masks of a folder, a_att.png, over what belongs to what was painted, by the attention of the model's VAE"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what it takes."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="images with masks; what those were is kept beside them")
    parser.add_argument("--again", action="store_true", help="also those that were spread before, once more")
    add_host_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Do it and say what became of each."""
    count, tell = 0, partial(print, file=sys.stderr)
    for mask in spread_folder(args.folder, host_of(args).open_model, tell, again=args.again):
        print(f"{mask} was spread.")
        count += 1
    kept = "what was there before is kept beside, in a file that ends in .unspread for each."
    print(f"{counted(count, 'mask')} {'was' if count == 1 else 'were'} spread; {kept}" if count else "No mask was spread.")
    return 0
