"""train: train an embedding on a folder of images."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ti_trainer.commands import INTERRUPTED, PROGRAM
from ti_trainer.commands.common import add_host_arguments, add_torchscript_argument, host_of, naming_overwrite
from ti_trainer.commands.create import add_start_arguments, create
from ti_trainer.commands.terminal import above_bars, add_options, given_options, interruptible
from ti_trainer.config import presets
from ti_trainer.config.json_text import as_object, object_of
from ti_trainer.config.training import SECTIONS, TrainConfig, options
from ti_trainer.errors import ConfigError, LostProcessError, StoppedError, TITrainerError
from ti_trainer.wording import counted

if TYPE_CHECKING:
    from ti_trainer.runs.session import Result, Session
    from ti_trainer.training.distributed import Processes

HELP = "train an embedding on a folder of images"
START = ("init_text", "num_vectors", "negative_vectors", "negative_init_text")  # what a new embedding starts from
SAME_PRESS_S = 3.0  # a process may receive one Ctrl-C twice: from the terminal and from torchrun


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments; the options come from config/."""
    parser.add_argument("name", metavar="NAME", help="name of the embedding")
    parser.add_argument(
        "--images",
        type=Path,
        required=True,
        metavar="DIR",
        help="the dataset: a folder of images, or a .toml file that lists several, in the format of kohya's dataset_config",
    )
    parser.add_argument("--resume", action="store_true", help="resume the last run of this embedding, with its settings")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="with --resume: resume even if the embedding was created again, replaced or trained since then",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="settings file, such as the settings.json of a run; options on the command line take precedence",
    )
    parser.add_argument(
        "--preset", metavar="NAME", help=f"options for a purpose: {', '.join(presets.BUILT_IN)}, or a preset that you saved"
    )
    start = parser.add_argument_group("new embedding", "With any of these, NAME is created first; it must not exist.")
    add_start_arguments(start, None, None)
    add_torchscript_argument(parser, "a settings file, preset or earlier run")
    add_host_arguments(parser, logs=True)
    add_options(parser, SECTIONS, options())


def config_of(args: argparse.Namespace) -> TrainConfig:
    """The options by precedence: command line, settings file, the run that is resumed, preset, defaults."""
    if args.overwrite and not args.resume:
        message = "--overwrite requires --resume: add that to resume the last run, or leave out --overwrite."
        raise ConfigError(message)
    return TrainConfig.from_dict({**_of_preset(args), **_saved_options(args), **given_options(args, options())})


def unused_of_preset(args: argparse.Namespace) -> str:
    """Which options of the preset a settings file or the resumed run replaces, as a sentence; "" if none."""
    if args.preset is None:
        return ""
    saved, given = _saved_options(args), given_options(args, options())
    of_preset = _of_preset(args).items()
    unused = [name for name, value in of_preset if name not in given and saved.get(name, value) != value]
    if not unused:
        return ""
    sources = {"the run that is resumed": args.resume, "the settings file": args.config is not None}
    source = " or ".join(each for each, is_used in sources.items() if is_used)
    return f"--preset {args.preset}: not used for {', '.join(unused)}, which {source} sets."


def _of_preset(args: argparse.Namespace) -> Mapping[str, Any]:
    return {} if args.preset is None else presets.load(args.log_dir / presets.FOLDER, args.preset).values


def _saved_options(args: argparse.Namespace) -> dict[str, object]:
    """The options of the run that is resumed, and of the settings file."""
    values: dict[str, object] = {}
    if args.resume:
        from ti_trainer.runs.run_folder import Run

        values |= Run.latest(args.log_dir, args.name).options()
    if args.config is not None:
        values |= _saved(args.config)
    return values


def _saved(path: Path) -> dict[str, object]:
    try:
        saved = object_of(path.read_bytes())
        return as_object(saved.get("train", saved))
    except OSError as error:
        why = "it is a folder" if path.is_dir() else error.strerror or str(error)
    except ValueError as error:
        why = str(error)
    message = f"The settings file {path} cannot be read ({why}): expected a JSON file such as the settings.json of a run."
    raise ConfigError(message)


def run(args: argparse.Namespace) -> int:
    """Train with a progress bar and print what was written. With torchrun, only process 0 prints."""
    from ti_trainer.training.distributed import joined

    with joined() as processes:
        if processes.size > 1:
            signal.signal(signal.SIGTERM, lambda number, frame: None)  # torchrun sends it when another process ends
        if processes.is_writer:
            return train(session_of(args, processes))
        logging.disable(logging.WARNING)
        try:
            return _follow(session_of(args, processes))
        except LostProcessError:
            raise
        except TITrainerError:
            return 0  # process 0 reports the error, and its exit code is that of the run


def session_of(args: argparse.Namespace, processes: Processes) -> Session:
    """The run that the arguments describe; its embedding is created if they say what it starts from."""
    from tqdm import tqdm

    from ti_trainer.runs.run_folder import Run
    from ti_trainer.runs.session import Session

    with processes.together():
        if processes.size > 1:
            args.device = own_device(args.device, int(os.environ.get("LOCAL_RANK", processes.rank)))
        earlier = Run.latest(args.log_dir, args.name) if args.resume else None
        session = Session(
            host_of(args),
            args.name,
            args.images,
            config_of(args),
            earlier,
            say=tqdm.write,
            processes=processes,
            overwrite=args.overwrite,
        )
        if processes.is_writer and (unused := unused_of_preset(args)):
            session.warn(unused)
        if processes.is_writer and any(getattr(args, each) is not None for each in START):
            _create(session, args)
    if not processes.is_writer:
        session.say = session.warn = lambda text: None
    return session


def _create(session: Session, args: argparse.Namespace) -> None:
    """Create the embedding that is to be trained; ConfigError if it exists or if its dataset cannot be used."""
    from ti_trainer.data.image_files import find_images
    from ti_trainer.formats import embeddings_dir
    from ti_trainer.runs.builders import model_options
    from ti_trainer.runs.datasets import subsets_of

    given = ", ".join("--" + each.replace("_", "-") for each in START if getattr(args, each) is not None)
    if args.resume:
        session.warn(f"{given}: not used, since --resume continues with the embedding that exists.")
        return
    existing = embeddings_dir.find(session.host.embeddings_dir, args.name)
    if existing is not None:
        message = (
            f"{given}: for a new embedding only; found {existing}, which exists. Leave them out to train it, or choose "
            "another NAME."
        )
        raise ConfigError(message)
    for subset in subsets_of(session.host, session.images):
        find_images(subset.folder)  # so that a mistyped folder does not leave an embedding behind
    not_again(session, create(session.host, model_options(session.config), args.name, args))


def not_again(session: Session, printed: Collection[str]) -> None:
    """Keep a run from repeating the warnings that were printed when its embedding was created."""
    warn = session.warn
    session.warn = lambda message: None if message in printed else warn(message)


def own_device(device: str, local_rank: int) -> str:
    """The device of process `local_rank` of this machine; ConfigError if there is none for it."""
    import torch

    if device.startswith("cuda:"):
        message = f"--device: found {device!r} for each of several processes, expected auto, cuda or cpu."
        raise ConfigError(message)
    if device not in ("auto", "cuda") or not torch.cuda.is_available():
        return device
    if local_rank >= (count := torch.cuda.device_count()):
        message = (
            f"Found {count} GPUs on this machine and at least {local_rank + 1} processes, expected a GPU for each: "
            f"start torchrun with --nproc-per-node {count}, or pass --device cpu."
        )
        raise ConfigError(message)
    torch.cuda.set_device(local_rank)
    return f"cuda:{local_rank}"


def _follow(session: Session) -> int:
    """Run a session in a process that does not write."""
    from ti_trainer.runs.controls import Controls

    with interruptible("", SAME_PRESS_S) as stop:
        session.follow(Controls(stop))
    return 0


def train(session: Session) -> int:
    """Run a session in a terminal: Ctrl-C stops it after the current step and saves the result."""
    from ti_trainer.commands.progress import Progress
    from ti_trainer.runs.controls import Controls

    try:
        message = "Stopping after this step; press Ctrl-C again to stop immediately."
        with (
            interruptible(message, SAME_PRESS_S if session.processes.size > 1 else 0.0) as stop,
            naming_overwrite(),
            above_bars(),
            Progress() as progress,
        ):
            result = session.train(progress.begin, Controls(stop), progress.loading, progress.generating)
    except StoppedError as stopped:
        print(stopped, file=sys.stderr)
        return INTERRUPTED
    report(result)
    return INTERRUPTED if result.reason == "interrupted" else 0


def report(result: Result) -> None:
    """Print which files were written."""
    from ti_trainer import formats
    from ti_trainer.training.selection import summary

    run_folder = result.run.path
    _report_end(result)
    print(f"  embedding      {result.embedding_file}")
    if result.negative_file:
        print(f"  negative       {result.negative_file}")
    if said := summary(result.trials):
        print(f"  kept           {said}")
    averaged = _averaged(result)
    for label, copy in zip(("moving average", "its negative"), averaged, strict=False):
        print(f"  {label:<14} {copy}")
    for label, file in _drawn(run_folder):
        print(f"  {label:<14} {file}")
    print(f"  run folder     {run_folder}")
    if averaged:
        print("To use the moving average:")
    for copy, file in averaged.items():
        name = f' --name "{file.stem}"' if file.stem != formats.read(copy).name else ""
        print(f'  {PROGRAM} convert "{copy}" "{file}"{name}')
    if result.last_step < result.max_steps:
        name, images = result.embedding.name, result.run.settings()["images"]
        what = "Resume" if result.reason == "interrupted" else "Train further"
        print(f'{what} with: {PROGRAM} train "{name}" --images "{images}" --resume')
        print("and with the same --model and folders, if you gave any.")


def _drawn(run_folder: Path) -> Iterator[tuple[str, Path]]:
    """The images that sum up the run, as far as there are any, with their labels."""
    for label, name in (("loss curve", "loss"), ("before, after", "before_after"), ("comparison", "comparison")):
        if (file := run_folder / f"{name}.png").is_file():
            yield label, file


def _report_end(result: Result) -> None:
    """Print when the run ended, which step was the best, warnings and what was measured."""
    from ti_trainer.runs.comparison import findings

    what = "Stopped" if result.reason == "interrupted" else "Done"
    print(f"{what} after step {result.last_step}, on {counted(result.num_images, 'image')}.")
    if result.verdict:
        print(result.verdict)
    for line in (*(f"Warning: {doubt}" for doubt in result.doubts), *findings(result.run)):
        print(line)


def _averaged(result: Result) -> dict[Path, Path]:
    """The last copy of the moving average and of its negative, and the files to convert them to."""
    from ti_trainer.embedding import averaged_name, negative_name

    copies = [copy for _, copy in result.run.copies(averaged=True)[-1:]]
    copies += [negative for copy in copies if (negative := result.run.negative_of(copy))]
    name, folder = averaged_name(result.embedding.name), result.embedding_file.parent
    return {copy: folder / f"{each}.safetensors" for copy, each in zip(copies, (name, negative_name(name)), strict=False)}
