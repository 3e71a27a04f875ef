"""preprocess: make a dataset from a folder of images."""

from __future__ import annotations

import argparse
import sys
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ti_trainer.commands import INTERRUPTED, PROGRAM
from ti_trainer.commands.terminal import above_bars, add_options, given_options, interruptible, moves
from ti_trainer.config.preprocessing import SECTIONS, PreprocessConfig, options
from ti_trainer.errors import ConfigError

if TYPE_CHECKING:
    from ti_trainer.preprocess.runner import Caption
    from ti_trainer.preprocess.summary import Summary

HELP = "make a dataset from a folder of images: crop, resize, split, flip, caption"
FIRST = 8
PREVIEWS = (".png", ".jpg", ".jpeg")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments; the options come from config/preprocessing.py."""
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder with images; they are not changed")
    parser.add_argument("destination", type=Path, metavar="DESTINATION", help="folder for the dataset")
    parser.add_argument(
        "--preview",
        type=Path,
        metavar="FILE",
        help=f"only write a contact sheet of the first {FIRST} images to FILE",
    )
    parser.add_argument(
        "--download-face-model", action="store_true", help="download the face detector's model first (230 kB)"
    )
    parser.add_argument("--device", default="auto", help="device for captions: auto, cpu, cuda or mps (default: auto)")
    add_options(parser, SECTIONS, options())


def run(args: argparse.Namespace) -> int:
    """Preprocess with a progress bar, and print a summary."""
    from tqdm import tqdm

    from ti_trainer.files import atomic
    from ti_trainer.preprocess import faces
    from ti_trainer.preprocess.contact_sheet import sheet
    from ti_trainer.preprocess.runner import Preprocessing

    config = PreprocessConfig(**given_options(args, options()))
    _check(args.preview, config)
    if args.download_face_model:
        print(f"The face detector's model is at {faces.download(faces.FOLDER)}.")
    captioning = partial(_captioning, config, args.device) if config.captioners else None
    work = Preprocessing(args.source, args.destination, config, [faces.FOLDER], captioning)
    if config.resize == "focal":
        print(faces.load(work.face_models)[1])
    if args.preview:
        drawn = sheet(work.preview(FIRST))
        with atomic(args.preview) as new:
            drawn.save(new)
        print(f"Wrote a preview of the first images to {args.preview}, and nothing else.")
        return 0
    message = "Finishing the current images; press Ctrl-C again to stop immediately."
    with interruptible(message) as stop, above_bars(), tqdm(desc="Preprocessing", unit="image", delay=0.2) as bar:
        summary = work.run(moves(bar), stop.is_set)
    report(summary, args)
    if summary.stopped:
        return INTERRUPTED
    return 0 if summary.sources or summary.done_before else 1


def _check(preview: Path | None, config: PreprocessConfig) -> None:
    """ConfigError for values that would fail only later."""
    if preview and preview.suffix.lower() not in PREVIEWS:
        message = f"Preview: found the file name {preview.name!r}, expected one that ends in .png or .jpg."
        raise ConfigError(message)
    if config.captioners:
        from ti_trainer.captioning import captioners

        captioners.chosen(config)


def _captioning(config: PreprocessConfig, device: str) -> AbstractContextManager[Caption]:
    from ti_trainer.captioning import captioners

    return captioners.opened(config, device=device)


def report(summary: Summary, args: argparse.Namespace) -> None:
    """Print what was made, and which images were skipped."""
    for line in summary.lines():
        print(line)
    for name, reason in summary.failed:
        print(f"  skipped: {name}: {reason}", file=sys.stderr)
    print(f'Check the dataset in {args.destination}, then: {PROGRAM} train NAME --images "{args.destination}"')
    if summary.stopped:
        print("Interrupted: run the same command again to continue.")
