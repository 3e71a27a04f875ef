"""share: a folder to publish an embedding with: its files, a card, a preview, a page and metadata."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from ti_trainer.commands.common import naming_overwrite
from ti_trainer.commands.terminal import number_of
from ti_trainer.hosts.diffusers import defaults

HELP = "make a folder to publish an embedding with: its files, a card, a preview, a page and metadata"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", metavar="NAME", help="name of the embedding")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help=f"folder to write to (default: LOG/shared/NAME, LOG being {defaults.LOG_DIR})",
    )
    parser.add_argument(
        "--preview", type=Path, metavar="FILE", help="image to show (default: its preview or that of its run)"
    )
    parser.add_argument("--description", default="", metavar="TEXT", help="what it is, in a sentence or two")
    parser.add_argument("--license", default="", metavar="TEXT", help="such as CC0-1.0 (default: a line to be filled in)")
    parser.add_argument(
        "--weight", type=number_of(float), default=0.0, metavar="X", help="weight that you advise (default: none)"
    )
    parser.add_argument("--negative-word", action="store_true", help="the embedding is for the negative prompt")
    parser.add_argument("--list", action="store_true", help="print what would be written, and write nothing")
    parser.add_argument("--overwrite", action="store_true", help="replace files in the folder")
    for flag, default, content in (
        ("--embeddings-dir", defaults.EMBEDDINGS_DIR, "embeddings"),
        ("--log-dir", defaults.LOG_DIR, "training runs"),
    ):
        text = f"folder with the {content} (default: %(default)s)"
        parser.add_argument(flag, type=Path, default=default, metavar="DIR", help=text)


def run(args: argparse.Namespace) -> int:
    """Print what is included, and write it."""
    from ti_trainer.workbench import share_page
    from ti_trainer.workbench.share import of_folder
    from ti_trainer.workbench.share_files import FOLDER, contents, write

    found = of_folder(args.embeddings_dir, args.log_dir, args.name)
    shared = replace(
        found,
        preview=args.preview or found.preview,
        for_negative=args.negative_word or found.for_negative,
        weight=args.weight,
        description=args.description,
        license=args.license,
    )
    shared.check()
    folder = args.out or args.log_dir / FOLDER / shared.name
    print(f"{folder}:")
    for name, what in contents(shared).items():
        print(f"  {name:<28} {what}")
    print()
    print(share_page.page(shared), flush=True)
    if args.list:
        print("Nothing was written.")
        return 0
    with naming_overwrite():
        write(shared, folder, overwrite=args.overwrite)
    print(f"Wrote {len(contents(shared))} files to {folder}.")
    return 0
