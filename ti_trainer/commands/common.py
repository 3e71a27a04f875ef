"""What several commands share: the model and the folders that they use."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ti_trainer.commands.terminal import add_options, given_options
from ti_trainer.config.options import Option
from ti_trainer.config.training import SECTIONS, options
from ti_trainer.errors import ConfigError
from ti_trainer.host import ModelOptions
from ti_trainer.hosts.diffusers import defaults

if TYPE_CHECKING:
    from ti_trainer.hosts.diffusers.host import StandaloneHost


def add_host_arguments(parser: argparse.ArgumentParser, *, logs: bool = False) -> None:
    """--model, --device and the folders."""
    group = parser.add_argument_group("model and folders")
    group.add_argument(
        "--model",
        default=defaults.MODEL,
        help="an SD 1.x, SD 2.x or SDXL checkpoint (.safetensors or .ckpt), a model folder in diffusers' format, or "
        "'embedded' for the tiny model that is included (default: %(default)s)",
    )
    add_folder_arguments(group, logs=logs)


def add_folder_arguments(parser: argparse._ActionsContainer, *, logs: bool = False) -> None:
    """--device, --embeddings-dir and, for commands that train, --log-dir."""
    parser.add_argument("--device", default=defaults.DEVICE, help="auto, cpu, cuda, cuda:1 or mps (default: %(default)s)")
    folders = {"--embeddings-dir": (defaults.EMBEDDINGS_DIR, "embeddings")}
    if logs:
        folders["--log-dir"] = (defaults.LOG_DIR, "training runs")
    for flag, (default, content) in folders.items():
        text = f"folder with the {content} (default: %(default)s)"
        parser.add_argument(flag, type=Path, default=default, metavar="DIR", help=text)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """The training options that describe the model, for commands that do not train."""
    add_options(parser, SECTIONS, _of_model())


def model_options(args: argparse.Namespace, precision: str = "auto") -> ModelOptions:
    """How to load the model; ConfigError for a value out of bounds."""
    given = given_options(args, _of_model())
    for option in _of_model():
        option.check(given.get(option.name, option.default))
    return ModelOptions(precision, **given)


def _of_model() -> list[Option]:
    return [option for option in options() if option.name in ("clip_skip", "prediction_type", "zero_terminal_snr")]


def add_torchscript_argument(parser: argparse.ArgumentParser, where: str) -> None:
    """--allow-torchscript; `where` says who else than the command line may name a discriminator."""
    text = (
        f"allow {where} to name a TorchScript discriminator, which can run any code "
        "(default: only safetensors classifiers are allowed)"
    )
    parser.add_argument("--allow-torchscript", action="store_true", help=text)


def host_of(args: argparse.Namespace) -> StandaloneHost:
    """The host that the arguments describe. A discriminator given on the command line may be TorchScript."""
    from ti_trainer.hosts.diffusers.host import StandaloneHost

    folders = args.embeddings_dir, getattr(args, "log_dir", defaults.LOG_DIR)
    allowed = getattr(args, "allow_torchscript", False) or bool(getattr(args, "discriminator", None))
    return StandaloneHost(args.model, args.device, *folders, torchscript=allowed)


@contextmanager
def naming_overwrite() -> Iterator[None]:
    """Add the name of --overwrite to errors that it avoids: the page shows the same errors without it."""
    try:
        yield
    except ConfigError as error:
        if error.option != "overwrite":
            raise
        message = f"{str(error).removesuffix('.')} (--overwrite)."
        raise ConfigError(message, "overwrite") from error
