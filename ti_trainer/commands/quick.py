"""quick: prepare images, create an embedding and train it, with options chosen for what it is to be."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ti_trainer.commands import INTERRUPTED
from ti_trainer.commands.common import add_host_arguments, host_of, naming_overwrite
from ti_trainer.commands.demo import CONFIG
from ti_trainer.commands.terminal import above_bars, interruptible, moves

HELP = "prepare images, create an embedding and train it, all with good defaults"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", metavar="NAME", help="name of the new embedding")
    parser.add_argument(
        "--images", type=Path, required=True, metavar="DIR", help="folder with 5 to 20 images; they are not changed"
    )
    parser.add_argument(
        "--what",
        default="object",
        metavar="TEXT",
        help="what NAME is: person, object, style, or a word or two for it, such as 'teapot' or 'watercolor style' "
        "(default: %(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing embedding with this name")
    parser.add_argument(
        "--queue", action="store_true", help="add it to the queue instead of doing it now; queue run does all of it then"
    )
    add_host_arguments(parser, logs=True)


def run(args: argparse.Namespace) -> int:
    """Run the stages, print what each did, and train."""
    from tqdm import tqdm

    from ti_trainer.commands.queue import added, queue_of
    from ti_trainer.commands.train import not_again, train
    from ti_trainer.errors import StoppedError
    from ti_trainer.preprocess.runner import Preprocessing
    from ti_trainer.preprocess.summary import Summary
    from ti_trainer.runs.quick import QuickTraining, what_of
    from ti_trainer.runs.quick_stages import STAGES, Stage

    host = host_of(args)
    options = CONFIG.to_dict() if host.model == "embedded" else {}
    work = QuickTraining(host, args.name, args.images, *what_of(args.what), options, args.overwrite)

    if args.queue:
        with naming_overwrite():
            print(added(work.name, queue_of(host).add(work)))
        return 0

    printed: list[str] = []

    def report(stage: Stage) -> None:
        if stage.status == "done":
            tqdm.write(f"{STAGES[stage.name]}: {stage.text}")
            for warning in stage.warnings:
                tqdm.write(warning, file=sys.stderr)
                printed.append(warning)

    message = "Finishing the current images; press Ctrl-C again to stop immediately."
    try:
        with interruptible(message) as stop, naming_overwrite(), above_bars():

            def preprocess(prepared: Preprocessing) -> Summary:
                with tqdm(desc="Preprocessing", unit="image", delay=0.2) as bar:
                    return prepared.run(moves(bar), stop.is_set)

            work.check()
            session = work.prepare(preprocess, report, stop.is_set)
    except StoppedError as stopped:
        print(stopped, file=sys.stderr)
        return INTERRUPTED
    session.say = tqdm.write
    not_again(session, printed)
    return train(session)
