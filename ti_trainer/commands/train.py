"""train: teach an embedding what is in a folder of images."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from ti_trainer import formats
from ti_trainer.commands import INTERRUPTED, PROGRAM
from ti_trainer.commands.common import add_host_arguments, add_torchscript_argument, host_of, naming_overwrite
from ti_trainer.commands.terminal import add_options, given_options, interruptible
from ti_trainer.config import presets
from ti_trainer.config.json_text import as_object, object_of
from ti_trainer.config.training import SECTIONS, TrainConfig, options
from ti_trainer.embedding import averaged_name, negative_name
from ti_trainer.errors import ConfigError, LostProcessError, StoppedError, TITrainerError
from ti_trainer.runs.run_folder import Run
from ti_trainer.runs.session import Controls, Result, Session
from ti_trainer.training.distributed import Processes, joined
from ti_trainer.training.events import Compiling, Event, StepDone
from ti_trainer.training.selection import in_words
from ti_trainer.training.trainer import Trainer
from ti_trainer.wording import counted

HELP = "teach an embedding what is in a folder of images"
READ_EVERY_S = 0.5  # between looks at the losses: each look makes the CPU wait for the GPU
SAME_PRESS_S = 3.0  # of several processes one may hear of one Ctrl-C twice: from the terminal and from torchrun


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what it takes; the options come from config.py."""
    parser.add_argument("name", metavar="NAME", help="an embedding that was made with create")
    parser.add_argument(
        "--images",
        type=Path,
        required=True,
        metavar="DIR",
        help="the dataset: a folder of images, or a .toml file that lists several as kohya's dataset_config does",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the last run of this embedding, with its settings")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="with --resume: go on with the run although the embedding was created anew, replaced or trained since",
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="saved settings (the settings.json of a run); flags go before"
    )
    parser.add_argument(
        "--preset", metavar="NAME", help=f"options that suit a purpose: {', '.join(presets.BUILT_IN)}, or one that you saved"
    )
    add_torchscript_argument(parser, "a settings file, preset or earlier run")
    add_host_arguments(parser, logs=True)
    add_options(parser, SECTIONS, options())


def config_of(args: argparse.Namespace) -> TrainConfig:
    """Defaults, over them a preset, over it the saved settings, over them the flags that were given."""
    if args.overwrite and not args.resume:
        message = "--overwrite goes with --resume only: add that to go on with the last run, or leave --overwrite out."
        raise ConfigError(message)
    values: dict[str, object] = {}
    if args.preset is not None:
        values |= presets.load(args.log_dir / presets.FOLDER, args.preset).values
    if args.resume:
        values |= Run.latest(args.log_dir, args.name).options()
    if args.config is not None:
        values |= _saved(args.config)
    return TrainConfig.from_dict({**values, **given_options(args, options())})


def _saved(path: Path) -> dict[str, object]:
    try:
        saved = object_of(path.read_bytes())
        return as_object(saved.get("train", saved))
    except OSError as error:
        why = "it is a folder" if path.is_dir() else error.strerror or str(error)
    except ValueError as error:
        why = str(error)
    message = f"The settings {path} cannot be read ({why}): expected a JSON file such as the settings.json of a run."
    raise ConfigError(message)


def run(args: argparse.Namespace) -> int:
    """Train, show the progress, say what was written. Of several processes that torchrun started, process 0 does that."""
    with joined() as processes:
        if processes.size > 1:
            signal.signal(signal.SIGTERM, lambda number, frame: None)  # where it asks for nothing, we are about to end
        if processes.is_writer:
            return train(_session(args, processes))
        logging.disable(logging.WARNING)
        try:
            return _follow(_session(args, processes))
        except LostProcessError:
            raise
        except TITrainerError:
            return 0  # process 0 says what there is to say, and its exit code is the run's


def _session(args: argparse.Namespace, processes: Processes) -> Session:
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
    if not processes.is_writer:
        session.say = session.warn = lambda text: None
    return session


def own_device(device: str, local_rank: int) -> str:
    """The device of the process that is number `local_rank` on this machine; ConfigError if there is none for it."""
    if device.startswith("cuda:"):
        message = f"--device: found {device!r} for each of several processes, expected auto, cuda or cpu."
        raise ConfigError(message)
    if device not in ("auto", "cuda") or not torch.cuda.is_available():
        return device
    if local_rank >= (count := torch.cuda.device_count()):
        message = (
            f"Found {count} GPUs on this machine and at least {local_rank + 1} processes, expected a GPU for each: "
            f"start torchrun with --nproc-per-node {count}, or give --device cpu."
        )
        raise ConfigError(message)
    torch.cuda.set_device(local_rank)
    return f"cuda:{local_rank}"


def _follow(session: Session) -> int:
    """Run a session in a process that does not write."""
    with interruptible("", SAME_PRESS_S) as stop:
        session.follow(Controls(stop))
    return 0


def train(session: Session) -> int:
    """Run a session on a terminal: Ctrl-C stops it after the step at hand, all kept."""
    try:
        said = "Stopping after this step; press Ctrl-C again to break off."
        with (
            interruptible(said, SAME_PRESS_S if session.processes.size > 1 else 0.0) as stop,
            naming_overwrite(),
            _Progress() as progress,
        ):
            result = session.train(progress.begin, Controls(stop), progress.loading)
    except StoppedError as stopped:
        print(stopped, file=sys.stderr)
        return INTERRUPTED
    report(result)
    return INTERRUPTED if result.reason == "interrupted" else 0


def report(result: Result) -> None:
    """Say what was written where."""
    step, run_folder = result.embedding.step, result.run.path
    what = "Stopped" if result.reason == "interrupted" else "Done"
    print(f"{what} after step {step}, on {counted(result.num_images, 'image')}.")
    for doubt in result.doubts:
        print(f"Warning: {doubt}")
    print(f"  embedding      {result.embedding_file}")
    if result.negative_file:
        print(f"  negative       {result.negative_file}")
    if said := in_words(result.trials):
        print(f"  kept           {said}")
    averaged = _averaged(result)
    for label, copy in zip(("moving average", "its negative"), averaged, strict=False):
        print(f"  {label:<14} {copy}")
    for label, name in (("loss curve", "loss.png"), ("before, after", "before_after.png")):
        if (run_folder / name).is_file():
            print(f"  {label:<14} {run_folder / name}")
    print(f"  all of the run {run_folder}")
    if averaged:
        print("To use the moving average:")
    for copy, file in averaged.items():
        name = f' --name "{file.stem}"' if file.stem != formats.read(copy).name else ""
        print(f'  {PROGRAM} convert "{copy}" "{file}"{name}')
    if result.reason == "interrupted":
        name, images = result.embedding.name, result.run.settings()["images"]
        print(f'Go on with: {PROGRAM} train "{name}" --images "{images}" --resume')
        print("and --model and the folders as before, where you gave any.")


def _averaged(result: Result) -> dict[Path, Path]:
    """The last copy of the moving average, that of the negative after it, and where they can be used as words."""
    copies = [copy for _, copy in result.run.copies(averaged=True)[-1:]]
    copies += [negative for copy in copies if (negative := result.run.negative_of(copy))]
    word, folder = averaged_name(result.embedding.name), result.embedding_file.parent
    return {copy: folder / f"{name}.safetensors" for copy, name in zip(copies, (word, negative_name(word)), strict=False)}


@dataclass
class _Progress:
    """Progress bars: reading images, then steps with the smoothed loss, which is read now and then only."""

    bar: tqdm | None = None
    _losses: list = field(default_factory=list)
    _smooth: float | None = None
    _read_at: float = 0.0

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def loading(self, done: int, total: int) -> None:
        """Reading image `done` of `total`."""
        if self.bar is None:
            self.bar = tqdm(total=total, desc="Reading images", unit="image", leave=False)
        self.bar.update(done - self.bar.n)

    def begin(self, trainer: Trainer, run: Run) -> list:
        """Called when training starts."""
        if self.bar is not None:
            self.bar.close()
        tqdm.write(f"Dataset: {trainer.dataset.in_words()}.")
        tqdm.write(f"Training on {trainer.model.name} ({trainer.model.spec}).")
        sys.stdout.flush()
        self.bar = tqdm(total=trainer.last_step, initial=trainer.step, desc="Training", unit="step")
        return [self]

    def __call__(self, event: Event) -> None:
        """A step is done, or about to take long."""
        if self.bar is not None and isinstance(event, Compiling):
            self.bar.set_description("Compiling, a minute or more")
        if not isinstance(event, StepDone) or self.bar is None:
            return
        self._losses.append(event.loss)
        self.bar.set_description("Training", refresh=False)
        now = time.monotonic()
        if self.bar.update() and now - self._read_at > READ_EVERY_S:
            self._read_at = now
            for loss in self._losses:
                value = float(loss)
                self._smooth = value if self._smooth is None else 0.98 * self._smooth + 0.02 * value
            self._losses.clear()
            self.bar.set_postfix_str(f"loss {self._smooth:.4f}, learning rate {event.learning_rate:g}", refresh=False)
