"""demo: train the included concept on the embedded model."""

from __future__ import annotations

import argparse

from ti_trainer.commands import PROGRAM
from ti_trainer.commands.common import add_folder_arguments
from ti_trainer.config.training import TrainConfig
from ti_trainer.host import ModelOptions

HELP = "first training: teach the embedded model the word 'my-thing' from eight images"
NAME, INIT_TEXT = "my-thing", "star"
CONFIG = TrainConfig(
    max_steps=400,
    batch_size=4,
    precision="fp32",
    preview_every=100,
    save_every=200,
    preview_prompt="a photo of [name] on grass",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_folder_arguments(parser, logs=True)


def run(args: argparse.Namespace) -> int:
    """Create the embedding, replacing the one of an earlier demo, and train it."""
    from ti_trainer import tiny_model
    from ti_trainer.commands.train import train
    from ti_trainer.formats import embeddings_dir
    from ti_trainer.hosts.diffusers.host import StandaloneHost
    from ti_trainer.runs import locks
    from ti_trainer.runs.session import Session

    host = StandaloneHost(device=args.device, embeddings_dir=args.embeddings_dir, log_dir=args.log_dir)
    print(f"Demo: train {NAME!r} on the images in {tiny_model.DEMO}, starting from {INIT_TEXT!r}.")
    model = host.open_model(ModelOptions("fp32"))
    with locks.embeddings_held(host.embeddings_dir, [NAME]):
        embeddings_dir.create(host.embeddings_dir, model, NAME, INIT_TEXT, 2, overwrite=True)
    code = train(Session(host, NAME, tiny_model.DEMO, CONFIG))
    if code == 0:
        print(f'Try it: {PROGRAM} generate "a drawing of {NAME} at night" --out image.png')
    return code
