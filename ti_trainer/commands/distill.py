"""distill: train an embedding to mean the same as a prompt or a LoRA, or as a slider between two prompts, without images."""

from __future__ import annotations

import argparse
from pathlib import Path

from ti_trainer.commands.common import add_host_arguments, host_of, naming_overwrite
from ti_trainer.commands.create import create
from ti_trainer.commands.terminal import add_options, given_options, number_of
from ti_trainer.config.training import SECTIONS, options
from ti_trainer.errors import ConfigError

HELP = "train an embedding to mean the same as a prompt or a LoRA, without images"
OWN = (  # options that have shorter names here
    *("teacher_prompt", "teacher_negative_prompt", "opposite_prompt", "teacher_lora", "teacher_lora_weight"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments; the options come from config/."""
    parser.add_argument("name", metavar="NAME", help="name of the new embedding")
    parser.add_argument(
        "--prompt", default="", metavar="TEXT", help="the prompt that NAME is to mean; with --lora its trigger words, if any"
    )
    parser.add_argument(
        "--negative-prompt",
        default="",
        metavar="TEXT",
        help="also train NAME-neg, for the negative prompt, which is to mean this prompt: what images should avoid; takes "
        "twice as long",
    )
    parser.add_argument(
        "--lora",
        default="",
        metavar="FILE",
        help="make NAME mean what this LoRA does, a .safetensors file of the model's family",
    )
    parser.add_argument(
        "--lora-weight",
        type=number_of(float),
        default=1.0,
        metavar="W",
        help="weight of the LoRA, usually 0.5 to 1 (default: 1)",
    )
    parser.add_argument(
        "--opposite",
        default="",
        metavar="TEXT",
        help="make NAME a slider: (NAME:1) means --prompt, and (NAME:-1) means this prompt",
    )
    parser.add_argument(
        "--context",
        action="append",
        default=[],
        metavar="TEXT",
        help="a prompt with [name] to train NAME in, such as 'a picture of a star, [name]'; may be repeated (default: NAME "
        "by itself)",
    )
    parser.add_argument(
        "--negative-word",
        action="store_true",
        help="NAME is for the negative prompt: compare images of --preview-prompt with and without it",
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
        help="number of vectors of NAME (default: half of the prompt's tokens, 2 to 16; with --lora 8)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing embedding with this name")
    add_host_arguments(parser, logs=True)
    add_options(parser, SECTIONS, [each for each in options() if each.name not in OWN])


def run(args: argparse.Namespace) -> int:
    """Create the embedding, generate images of the prompts and train on them."""
    from tqdm import tqdm

    from ti_trainer.commands.train import not_again, train
    from ti_trainer.files import entered_path
    from ti_trainer.formats import embeddings_dir
    from ti_trainer.runs.builders import model_options
    from ti_trainer.runs.checks import check_images, check_options
    from ti_trainer.runs.distill import Distillation, check_lora

    if args.context and args.template is not None:
        message = "--context: found --template as well, expected one of them: both say which prompts NAME is trained in."
        raise ConfigError(message, "contexts")
    if not args.lora.strip() and args.lora_weight != 1:
        message = "--lora-weight: found without --lora, expected the LoRA that it is the weight of."
        raise ConfigError(message, "teacher_lora_weight")
    lora = str(entered_path(args.lora).resolve()) if args.lora.strip() else ""  # so that the run can be resumed anywhere
    prompts, for_lora = (args.name, args.prompt, args.opposite, tuple(args.context)), (lora, args.lora_weight)
    wanted = Distillation(*prompts, args.negative_word, *for_lora, args.negative_prompt.strip())
    config = wanted.config(given_options(args, [each for each in options() if each.name not in OWN]))
    host = host_of(args)
    with naming_overwrite():
        for name in wanted.names:
            embeddings_dir.free_file(host.embeddings_dir, name, overwrite=args.overwrite)
        check_options(host, args.name, config)  # so that a mistyped option or folder does not leave an embedding behind
        if args.images is not None:
            check_images(host, args.images)
        model = host.open_model(model_options(config))
        check_lora(host, config, model)
        init_text, args.num_vectors = wanted.start(model, args.num_vectors)
        args.negative_init_text, args.negative_vectors = wanted.negative_start(model) or (None, None)
        session = wanted.session(host, config, args.images, tqdm.write)
        args.init_text = init_text if args.init_text is None else args.init_text
        not_again(session, create(host, model_options(config), args.name, args, overwrite=args.overwrite))
    return train(session)
