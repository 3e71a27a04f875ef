"""spread: extend roughly painted masks to everything that looks like what they mark."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from ti_trainer.commands.common import add_host_arguments, host_of
from ti_trainer.wording import counted

HELP = "extend the masks in a folder to the whole of what they mark, by the attention of the model's VAE"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="images with masks (a_att.png for a.png); the old masks are kept"
    )
    parser.add_argument("--again", action="store_true", help="also extend masks that were extended before")
    add_host_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Extend the masks and print a line for each."""
    from ti_trainer.data.attention_spread import spread_folder

    count, warn = 0, partial(print, file=sys.stderr)
    for mask in spread_folder(args.folder, host_of(args).open_model, warn, again=args.again):
        print(f"Extended {mask}.")
        count += 1
    kept = "Each old mask is kept next to the new one, with the extension .unspread."
    print(f"{counted(count, 'mask')} extended. {kept}" if count else "No mask was extended.")
    return 0
