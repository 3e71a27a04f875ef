"""compare: images of several copies or embeddings with the same prompts and seeds, as a grid."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ti_trainer.commands import INTERRUPTED, PROGRAM
from ti_trainer.commands.common import add_host_arguments, add_model_options, host_of, model_options
from ti_trainer.commands.terminal import above_bars, interruptible, number_of
from ti_trainer.errors import ConfigError
from ti_trainer.host import GenerationRequest, ModelOptions

if TYPE_CHECKING:
    from tqdm import tqdm

    from ti_trainer.hosts.diffusers.host import StandaloneHost
    from ti_trainer.runs.run_folder import Run
    from ti_trainer.workbench.candidates import Candidate
    from ti_trainer.workbench.compare import Comparison
    from ti_trainer.workbench.comparison_run import Outcome, Progress
    from ti_trainer.workbench.scores import Scoring

HELP = "compare copies of runs, or embeddings, as a grid of images with the same prompts and seeds"
PROMPTS = ("a photo of [name]", "a painting of [name]")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help="a run: DATE/NAME, its folder, or the name of an embedding for its latest run",
    )
    parser.add_argument(
        "--embedding",
        action="append",
        default=[],
        metavar="NAME",
        help="also compare this embedding of the embeddings folder, or of a file; may be repeated",
    )
    parser.add_argument(
        "--copies",
        nargs="+",
        metavar="STEP",
        help="steps of the copies to compare, or all (default: first, last, two between, and the one with the lowest "
        "validation loss); 300-ema is the moving average at step 300",
    )
    parser.add_argument(
        "--prompts",
        nargs="+",
        default=PROMPTS,
        metavar="TEXT",
        help="prompts, in which [name] stands for the embedding (default: 'a photo of [name]' and 'a painting of [name]')",
    )
    parser.add_argument("--negative-prompt", default="", metavar="TEXT", help="what the images should not show")
    parser.add_argument("--seeds", type=number_of(int), nargs="+", default=(1, 2), metavar="N", help="(default: 1 2)")
    parser.add_argument(
        "--weights",
        type=number_of(float),
        nargs="+",
        default=(1.0,),
        metavar="X",
        help="weights of the embedding in the prompts, as in (name:0.8) (default: 1)",
    )
    for flag, kind, default, text in (
        ("--steps", int, GenerationRequest.steps, "sampling steps"),
        ("--cfg-scale", float, GenerationRequest.cfg_scale, "guidance scale"),
        ("--width", int, 0, "multiple of 8; 0 is the model's own size"),
        ("--height", int, 0, "multiple of 8; 0 is the model's own size"),
    ):
        metavar = "X" if kind is float else "N"
        parser.add_argument(
            flag, type=number_of(kind), default=default, metavar=metavar, help=f"{text} (default: {default})"
        )
    parser.add_argument(
        "--similarity",
        type=Path,
        metavar="DIR",
        help="folder of a CLIP or DINO of transformers: measure the similarity to the training images and, with a CLIP, to "
        "the prompts",
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="with --similarity: images to compare with (default: those that the first run was trained on)",
    )
    add_host_arguments(parser, logs=True)
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Generate the images, and print what is in each row."""
    from tqdm import tqdm

    from ti_trainer.workbench.compare import Comparison
    from ti_trainer.workbench.comparison_run import run as compare

    host = host_of(args)
    runs = [_run_of(host, each) for each in args.runs]
    comparison = Comparison(
        host,
        tuple(_candidates(args, host, runs)),
        tuple(dict.fromkeys(args.prompts)),
        tuple(dict.fromkeys(args.seeds)),
        tuple(dict.fromkeys(args.weights)),
        GenerationRequest("", args.negative_prompt, args.steps, args.cfg_scale, width=args.width, height=args.height),
        _options(args, runs),
        _scoring(args, runs),
    )
    comparison.check()
    for row in range(len(comparison.rows)):
        print(f"Row {row + 1}: {', '.join(comparison.row_lines(row, {}))}", flush=True)
    message = "Stopping after this image; press Ctrl-C again to stop immediately."
    with interruptible(message) as stop, above_bars(), tqdm(total=comparison.size, unit="image", delay=0.2) as bar:
        outcome = compare(comparison, _reporter(bar), stop.is_set)
    return _report(comparison, outcome)


def _report(comparison: Comparison, outcome: Outcome) -> int:
    """Print what was made and how to use a copy."""
    for note in outcome.notes:
        print(note, file=sys.stderr)
    print(outcome.summary)
    if outcome.scores:
        for row in range(len(comparison.rows)):
            print(f"Row {row + 1}: {', '.join(comparison.row_lines(row, outcome.scores))}")
    print(f"  grid      {outcome.grid}")
    print(f"  settings  {outcome.folder / 'comparison.json'}")
    copies = [each for each in comparison.candidates if each.run is not None]
    if copies and not outcome.stopped:
        best = comparison.best or copies[0]
        which = f", such as the one with the lowest validation loss, {best.label}" if comparison.best else ""
        print(f"To use a copy{which}:")
        negative = best.run.negative_of(best.file) if best.run else None
        for file in filter(None, (best.file, negative)):
            print(f'  {PROGRAM} convert "{file}" "{comparison.host.embeddings_dir / file.name}"')
    return INTERRUPTED if outcome.stopped else 0


def _reporter(bar: tqdm[Any]) -> Callable[[Progress], None]:
    """A function that shows progress in the bar, which starts again for the similarity."""
    from ti_trainer.commands.terminal import moves

    shown, move = ["image"], moves(bar)

    def report(progress: Progress) -> None:
        if progress.what != shown[0]:
            shown[0] = progress.what
            bar.reset(progress.total)
            bar.set_description("Measuring the similarity")
        move(progress.done, progress.total)

    return report


def _run_of(host: StandaloneHost, text: str) -> Run:
    """A run by DATE/NAME, by its folder, or the latest of an embedding; ConfigError if there is none."""
    from ti_trainer.runs.run_folder import Run

    for path in (host.log_dir / text, Path(text)):
        if (path / "settings.json").is_file():
            return Run(path.resolve())
    runs = [each for each in Run.all(host.log_dir) if each.settings().get("name") == text]
    if not runs:
        message = f"There is no run {text!r} in {host.log_dir}: expected DATE/NAME, a run's folder, or an embedding's name."
        raise ConfigError(message)
    return runs[0]


def _candidates(args: argparse.Namespace, host: StandaloneHost, runs: list[Run]) -> Iterator[Candidate]:
    from ti_trainer.workbench import candidates

    for each in runs:
        have = candidates.copies_of(each)
        wanted = candidates.suggested(each)
        if args.copies:
            named = [step.removesuffix("-ema") + candidates.AVERAGE * step.endswith("-ema") for step in args.copies]
            wanted = list(have) if args.copies == ["all"] else list(dict.fromkeys(named))
        if not wanted:
            message = f"The run {each.id} has saved no copies: nothing to compare. Train with --save-every."
            raise ConfigError(message)
        yield from candidates.of_run(each, wanted, with_id=len(runs) > 1)
    for name in args.embedding:
        path = Path(name)
        yield candidates.of_file(path) if path.is_file() else candidates.of_folder(host.embeddings_dir, name)


def _options(args: argparse.Namespace, runs: list[Run]) -> ModelOptions:
    """How the model is opened: as given, or else as in the first run."""
    from dataclasses import replace

    from ti_trainer.config.training import TrainConfig

    given = model_options(args)
    saved = runs[0].settings().get("train", {}) if runs else {}
    names = [name for name in ("clip_skip", "prediction_type", "zero_terminal_snr") if getattr(args, name) is None]
    of_run = {name: saved[name] for name in names if name in saved}
    config = TrainConfig.from_dict(of_run)
    return replace(given, **{name: getattr(config, name) for name in of_run})


def _scoring(args: argparse.Namespace, runs: list[Run]) -> Scoring | None:
    from ti_trainer.workbench.scores import Scoring

    if args.similarity is None:
        if args.images is not None:
            message = "--images: only used with --similarity, the folder of a CLIP or DINO."
            raise ConfigError(message)
        return None
    images = args.images
    if images is None and runs:
        trained = Path(str(runs[0].settings().get("images", "")))
        images = trained if trained.exists() else None
        if images is None:
            print(f"The training images are not at {trained} any more: only compared with the prompts.", file=sys.stderr)
    return Scoring(args.similarity, images)
