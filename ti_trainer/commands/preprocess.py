"""preprocess: make a dataset of a folder of photos."""

from __future__ import annotations

import argparse
import sys
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from tqdm import tqdm

from ti_trainer.commands import INTERRUPTED, PROGRAM
from ti_trainer.commands.terminal import add_options, given_options, interruptible
from ti_trainer.config.preprocessing import SECTIONS, PreprocessConfig, options
from ti_trainer.errors import ConfigError
from ti_trainer.files import atomic
from ti_trainer.preprocess import faces
from ti_trainer.preprocess.contact_sheet import sheet
from ti_trainer.preprocess.runner import Caption, Preprocessing
from ti_trainer.preprocess.summary import Summary

HELP = "make a dataset of a folder of photos: crop, resize, split, flip, caption"
FIRST = 8
PREVIEWS = (".png", ".jpg", ".jpeg")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what it takes; the options come from config/preprocessing.py."""
    parser.add_argument("source", type=Path, metavar="SOURCE", help="the folder with photos; they are only read")
    parser.add_argument("destination", type=Path, metavar="DESTINATION", help="the folder for the dataset")
    parser.add_argument(
        "--preview", type=Path, metavar="FILE", help=f"only draw what becomes of the first {FIRST} photos, into this image"
    )
    parser.add_argument(
        "--download-face-model", action="store_true", help="first get the face detector's model (230 kB) from its makers"
    )
    parser.add_argument("--device", default="auto", help="for captions: auto, cpu, cuda, mps (default: %(default)s)")
    add_options(parser, SECTIONS, options())


def run(args: argparse.Namespace) -> int:
    """Do it, show the progress, say what was made."""
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
        print(f"What becomes of the first photos is drawn in {args.preview}; nothing else was written.")
        return 0
    said = "Finishing the photos at hand; press Ctrl-C again to break off."
    with interruptible(said) as stop, tqdm(desc="Preprocessing", unit="photo", delay=0.2) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        summary = work.run(progress, stop.is_set)
    report(summary, args)
    if summary.stopped:
        return INTERRUPTED
    return 0 if summary.photos or summary.done_before else 1


def _check(preview: Path | None, config: PreprocessConfig) -> None:
    """Refuse at once what would fail late; ConfigError."""
    if preview and preview.suffix.lower() not in PREVIEWS:
        message = f"The preview is an image: found the file name {preview.name!r}, expected one that ends in .png or .jpg."
        raise ConfigError(message)
    if config.captioners:
        from ti_trainer.captioning import captioners

        captioners.chosen(config)


def _captioning(config: PreprocessConfig, device: str) -> AbstractContextManager[Caption]:
    from ti_trainer.captioning import captioners

    return captioners.opened(config, device=device)


def report(summary: Summary, args: argparse.Namespace) -> None:
    """Say what was made, and what was not."""
    for line in summary.lines():
        print(line)
    for name, reason in summary.failed:
        print(f"  left out: {name}: {reason}", file=sys.stderr)
    print(f'Look at the dataset in {args.destination}, then: {PROGRAM} train NAME --images "{args.destination}"')
    if summary.stopped:
        print("Interrupted: the same command again goes on from here.")
