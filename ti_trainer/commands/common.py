"""What several commands share: the model and folders they work on."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ti_trainer.commands.terminal import add_options, given_options
from ti_trainer.config.options import Option
from ti_trainer.config.training import SECTIONS, options
from ti_trainer.errors import ConfigError
from ti_trainer.host import ModelOptions
from ti_trainer.hosts.diffusers.host import StandaloneHost


def add_host_arguments(parser: argparse.ArgumentParser, *, logs: bool = False) -> None:
    """--model, --device and the folders."""
    group = parser.add_argument_group("model and folders")
    group.add_argument(
        "--model",
        default=StandaloneHost.model,
        help="'embedded' (the tiny one that ships with us), a folder in diffusers' layout, or a checkpoint (.safetensors, "
        ".ckpt) of SD 1.x, SD 2.x or SDXL (default: %(default)s)",
    )
    add_place_arguments(group, logs=logs)


def add_place_arguments(parser: argparse._ActionsContainer, *, logs: bool = False) -> None:
    """--device, --embeddings-dir and, for commands that train, --log-dir."""
    parser.add_argument(
        "--device", default=StandaloneHost.device, help="auto, cpu, cuda, cuda:1, mps (default: %(default)s)"
    )
    folders = {"--embeddings-dir": (StandaloneHost.embeddings_dir, "embeddings")}
    if logs:
        folders["--log-dir"] = (StandaloneHost.log_dir, "runs")
    for flag, (default, kept) in folders.items():
        text = f"where {kept} are kept (default: %(default)s)"
        parser.add_argument(flag, type=Path, default=default, metavar="DIR", help=text)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Those of a training that say how its model is used, for commands that do not train."""
    add_options(parser, SECTIONS, _of_model())


def model_options(args: argparse.Namespace, precision: str = "auto") -> ModelOptions:
    """How the model is opened; ConfigError for a value out of bounds."""
    given = given_options(args, _of_model())
    for option in _of_model():
        option.check(given.get(option.name, option.default))
    return ModelOptions(precision, **given)


def _of_model() -> list[Option]:
    return [option for option in options() if option.name in ("clip_skip", "prediction_type", "zero_terminal_snr")]


def add_torchscript_argument(parser: argparse.ArgumentParser, where: str) -> None:
    """--allow-torchscript, for what trains; `where` are files that may name one besides the command line."""
    text = (
        f"let {where} name a discriminator in TorchScript, which can run any code (default: a safetensors classifier only)"
    )
    parser.add_argument("--allow-torchscript", action="store_true", help=text)


def host_of(args: argparse.Namespace) -> StandaloneHost:
    """The host that the arguments describe. Who types a discriminator allows it to be TorchScript."""
    folders = args.embeddings_dir, getattr(args, "log_dir", StandaloneHost.log_dir)
    allowed = getattr(args, "allow_torchscript", False) or bool(getattr(args, "discriminator", None))
    return StandaloneHost(args.model, args.device, *folders, torchscript=allowed)


@contextmanager
def naming_overwrite() -> Iterator[None]:
    """A refusal that --overwrite lifts names it: the message itself is also the page's."""
    try:
        yield
    except ConfigError as error:
        if error.option != "overwrite":
            raise
        message = f"{str(error).removesuffix('.')} (--overwrite)."
        raise ConfigError(message, "overwrite") from error
