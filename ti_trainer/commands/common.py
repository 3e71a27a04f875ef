"""What several commands share: the model and folders they work on."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ti_trainer.hosts.diffusers.host import StandaloneHost

PROGRAM = os.environ.get("TI_TRAINER_PROGRAM", "python -m ti_trainer")  # as the user calls it; install.py says so


def add_host_arguments(parser: argparse.ArgumentParser, *, logs: bool = False) -> None:
    """--model, --device, --embeddings-dir and, for commands that train, --log-dir."""
    group = parser.add_argument_group("model and folders")
    group.add_argument(
        "--model",
        default="embedded",
        help="'embedded' (the tiny one that ships with us), a folder in diffusers' layout, or an SD 1.x checkpoint file "
        "(.safetensors, .ckpt) (default: %(default)s)",
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: %(default)s)")
    group.add_argument(
        "--embeddings-dir",
        type=Path,
        default=Path("embeddings"),
        metavar="DIR",
        help="where embeddings are kept (default: %(default)s)",
    )
    if logs:
        group.add_argument(
            "--log-dir",
            type=Path,
            default=Path("textual_inversion"),
            metavar="DIR",
            help="where runs are kept (default: %(default)s)",
        )


def host_of(args: argparse.Namespace) -> StandaloneHost:
    """The host that the arguments describe."""
    return StandaloneHost(args.model, args.device, args.embeddings_dir, getattr(args, "log_dir", Path("textual_inversion")))
