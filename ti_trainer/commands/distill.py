"""distill: train an embedding to mean the same as a prompt, or as a slider between two prompts, without images."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from ti_trainer.commands.common import add_host_arguments, host_of
from ti_trainer.commands.create import create
from ti_trainer.commands.terminal import add_options, given_options, number_of
from ti_trainer.config.training import SECTIONS, TrainConfig, options
from ti_trainer.errors import ConfigError

HELP = "train an embedding to mean the same as a prompt, without images"
DEFAULTS = {"max_steps": 450, "lr_scheduler": "linear", "template": "none"}  # others than for images
FEWEST, MOST = 2, 16  # vectors, where no number is given
OWN = ("teacher_prompt", "opposite_prompt")  # options that have shorter names here


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments; the options come from config/."""
    parser.add_argument("name", metavar="NAME", help="name of the new embedding")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="the prompt that NAME is to mean")
    parser.add_argument(
        "--opposite",
        default="",
        metavar="TEXT",
        help="make NAME a slider: (NAME:1) means --prompt, and (NAME:-1) means this prompt",
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="images of the prompt to add noise to (default: the model generates some)",
    )
    parser.add_argument(
        "--init-text", metavar="TEXT", help="initial text (default: the prompt without articles and prepositions)"
    )
    parser.add_argument(
        "--num-vectors",
        type=number_of(int),
        metavar="N",
        help=f"number of vectors (default: half of the prompt's tokens, {FEWEST} to {MOST})",
    )
    add_host_arguments(parser, logs=True)
    add_options(parser, SECTIONS, [each for each in options() if each.name not in OWN])


def run(args: argparse.Namespace) -> int:
    """Create the embedding, generate images of the prompts and train on them."""
    from tqdm import tqdm

    from ti_trainer.commands.train import train
    from ti_trainer.formats import embeddings_dir
    from ti_trainer.prompts import content_words
    from ti_trainer.runs.builders import model_options
    from ti_trainer.runs.checks import check_images, check_options
    from ti_trainer.runs.generated import GeneratedImages
    from ti_trainer.runs.session import Session

    if not args.prompt.strip():
        message = "--prompt: found an empty text, expected the prompt that the embedding is to mean."
        raise ConfigError(message, "teacher_prompt")
    given = given_options(args, [each for each in options() if each.name not in OWN])
    config = TrainConfig.from_dict({**DEFAULTS, **given, "teacher_prompt": args.prompt, "opposite_prompt": args.opposite})
    host = host_of(args)
    embeddings_dir.free_file(host.embeddings_dir, args.name, overwrite=False)
    check_options(host, args.name, config)  # so that a mistyped option or folder does not leave an embedding behind
    generated = None
    if args.images is not None:
        check_images(host, args.images)
    else:
        generated = GeneratedImages.of(host, args.name, *filter(None, (args.prompt, args.opposite)))
    images = args.images if generated is None else generated.folder
    session = Session(host, args.name, images, config, say=tqdm.write, generated=generated)
    model = host.open_model(model_options(config))
    tokens = len(next(iter(model.token_embeddings(args.prompt).values())))
    args.num_vectors = args.num_vectors or min(max(math.ceil(tokens / 2), FEWEST), MOST)
    args.init_text = content_words(args.prompt) if args.init_text is None else args.init_text
    args.negative_vectors = args.negative_init_text = None
    create(host, model_options(config), args.name, args)
    return train(session)
