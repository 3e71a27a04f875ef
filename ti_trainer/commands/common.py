"""What several commands share: the model and folders they work on."""

from __future__ import annotations

import argparse
from pathlib import Path

from ti_trainer.hosts.diffusers.host import StandaloneHost


def add_host_arguments(parser: argparse.ArgumentParser, *, logs: bool = False) -> None:
    """--model, --device and the folders."""
    group = parser.add_argument_group("model and folders")
    group.add_argument(
        "--model",
        default=StandaloneHost.model,
        help="'embedded' (the tiny one that ships with us), a folder in diffusers' layout, or an SD 1.x checkpoint file "
        "(.safetensors, .ckpt) (default: %(default)s)",
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


def host_of(args: argparse.Namespace) -> StandaloneHost:
    """The host that the arguments describe."""
    return StandaloneHost(args.model, args.device, args.embeddings_dir, getattr(args, "log_dir", StandaloneHost.log_dir))
