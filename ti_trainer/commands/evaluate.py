"""evaluate: the validation loss of an embedding, compared with its initial text."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ti_trainer.commands.common import add_host_arguments, add_model_options, host_of, model_options
from ti_trainer.config.training import TrainConfig
from ti_trainer.wording import counted

if TYPE_CHECKING:
    from ti_trainer.data.dataset import Item
    from ti_trainer.functional.guidance import GuidanceScale
    from ti_trainer.hosts.diffusers.host import StandaloneHost
    from ti_trainer.model import DiffusionModel, Vectors

HELP = "measure the validation loss of an embedding, ideally on images that it was not trained on"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", metavar="NAME", help="name of the embedding")
    parser.add_argument(
        "--images",
        type=Path,
        required=True,
        metavar="DIR",
        help="images of the subject, with or without captions: a dataset as for train",
    )
    parser.add_argument(
        "--init-text", metavar="TEXT", help="text to compare with (default: the initial text of the embedding)"
    )
    parser.add_argument("--negative", action="store_true", help="guide NAME away from NAME-neg, as in DreamArtist training")
    parser.add_argument(
        "--train-cfg-scale",
        default=TrainConfig.train_cfg_scale,
        metavar="S",
        help="its guidance scale (default: %(default)s)",
    )
    parser.add_argument(
        "--prompt", default="", metavar="TEXT", help="also say how near NAME comes to this prompt, which it was to learn"
    )
    parser.add_argument("--opposite", default="", metavar="TEXT", help="NAME is a slider: the prompt of (NAME:-1)")
    parser.add_argument(
        "--context",
        action="append",
        default=[],
        metavar="TEXT",
        help="a prompt with [name] to measure that in; may be repeated (default: NAME by itself)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_host_arguments(parser)
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Measure and print the losses."""
    _check(args)
    facts, texts = measure(args)
    if args.json:
        print(json.dumps(facts))
        return 0
    losses = facts["loss"]
    how = f", with a guidance scale of {args.train_cfg_scale}" if args.negative else ""
    print(f"Validation loss on {counted(facts['images'], 'image')}, each with its caption{how} (lower is better):")
    for key, text in texts.items():
        print(f"  {losses[key]:.5f}  {text}")
    gains = ((facts["better_than_init_text"], "of its init text"), (facts["better_than_no_word"], "without it"))
    compared = [
        f"{abs(gain):.1%} {'lower' if gain >= 0 else 'higher'} than that {what}" for gain, what in gains if gain is not None
    ]
    print(f"The loss of the embedding is {' and '.join(compared)}.")
    for line in _about_prompt(facts, args):
        print(line)
    return 0


def measure(args: argparse.Namespace, host: StandaloneHost | None = None) -> tuple[dict[str, Any], dict[str, str]]:
    """Losses and more for --json, and the texts that were compared, by the same keys as their losses."""
    from ti_trainer.data.subsets import read_subsets
    from ti_trainer.embedding import LEARNED_FROM, negative_name
    from ti_trainer.formats import embeddings_dir
    from ti_trainer.functional.guidance import GuidanceScale
    from ti_trainer.model import check_fits
    from ti_trainer.prompts import NO_TEXT, escaped
    from ti_trainer.runs.datasets import items_to_measure

    host = host or host_of(args)
    embedding, _ = embeddings_dir.load(host.embeddings_dir, args.name)
    embeddings, scale, negative_text = {embedding.name: embedding.vectors}, None, None
    negative = negative_name(embedding.name)
    if args.negative:
        scale = GuidanceScale.parse(args.train_cfg_scale)
        trained, _ = embeddings_dir.load_negative(host.embeddings_dir, embedding.name)
        embeddings[negative], negative_text = trained.vectors, trained.info.get("init_text")
    elif LEARNED_FROM not in embedding.info and embeddings_dir.find(host.embeddings_dir, negative) is not None:
        print(f"Measured without {negative}: if both were trained together, pass --negative.", file=sys.stderr)
    init_text = args.init_text if args.init_text is not None else embedding.info.get("init_text")
    if init_text == NO_TEXT and args.init_text is None:
        message = f"{embedding.name} was created from '{NO_TEXT}', which describes nothing"
        print(f"{message}: give a text to compare with by --init-text.", file=sys.stderr)
    model = host.open_model(model_options(args, "fp32"))
    check_fits(model, embedding)
    items = items_to_measure(model, read_subsets(args.images))
    texts = {"word": f"a photo of {escaped(embedding.name)}"}
    if init_text is not None:
        texts["init_text"] = f"a photo of {escaped(init_text)}"
    texts["no_word"] = "a photo"
    # The guidance is the same for each: the init text is guided away from the negative's init text, no text from no text.
    against = texts | {"init_text": f"a photo of {negative_text}" if negative_text else "a photo"}
    losses = {key: _loss(model, items, text, embeddings, against[key], scale, key) for key, text in texts.items()}
    gain = 1 - losses["word"] / losses["init_text"] if init_text is not None else None
    facts = {
        "name": embedding.name,
        "step": embedding.step,
        "images": len(items),
        "loss": losses,
        "better_than_init_text": gain,
        "better_than_no_word": 1 - losses["word"] / losses["no_word"],
    }
    if args.prompt:
        facts |= _compared_with_prompt(model, items, embeddings, args)
    return facts, texts


def _loss(
    model: DiffusionModel,
    items: Sequence[Item],
    text: str,
    embeddings: Mapping[str, Vectors],
    against: str,
    scale: GuidanceScale | None,
    key: str,
) -> float:
    """The validation loss of a text with each image's caption; only the embedding's own text uses the embeddings."""
    from ti_trainer.embedding import unwanted
    from ti_trainer.training.evaluation import described, validation_loss

    prompts = [described(text, item.caption or "") for item in items]
    if key == "word":
        name = next(iter(embeddings))
        negatives = [unwanted(prompt, name) for prompt in prompts]
    else:
        embeddings = {}  # their names may occur in the other texts
        negatives = [described(against, item.caption or "") for item in items]
    return validation_loss(model, items, prompts, embeddings, scale, negatives if scale else ())


def _check(args: argparse.Namespace) -> None:
    """ConfigError for arguments that say nothing without others, and for a context without the name."""
    from ti_trainer.data.prompts import NAME
    from ti_trainer.errors import ConfigError

    if (args.opposite or args.context) and not args.prompt:
        message = "--opposite and --context: found without --prompt, expected the prompt that NAME was to learn."
        raise ConfigError(message, "prompt")
    for each in args.context:
        if NAME not in each:
            message = f"--context: found {each!r}, expected a prompt with {NAME}."
            raise ConfigError(message, "contexts")


def _compared_with_prompt(
    model: DiffusionModel, items: Sequence[Item], embeddings: Mapping[str, Vectors], args: argparse.Namespace
) -> dict[str, Any]:
    """How near the embedding comes to `args.prompt`, or as a slider to both prompts; for --json."""
    from ti_trainer.data.prompts import NAME
    from ti_trainer.prompts import escaped
    from ti_trainer.training.evaluation import gap_closed
    from ti_trainer.training.slider import slider_positions
    from ti_trainer.training.teacher import Teacher

    contexts = args.context or [NAME]
    lines, teacher = (
        [contexts[number % len(contexts)] for number in range(len(items))],
        Teacher(args.name, args.prompt, args.opposite),
    )
    with model.training():
        if args.opposite:
            return {"slider": slider_positions(model, items, lines, embeddings, teacher)}
        prompts = [line.replace(NAME, escaped(args.name)) for line in lines]
        return {"gap_closed": gap_closed(model, items, prompts, embeddings, teacher)}


def _about_prompt(facts: Mapping[str, Any], args: argparse.Namespace) -> list[str]:
    from ti_trainer.runs.comparison import about_gap
    from ti_trainer.training.slider import about_slider

    if "slider" in facts:
        return about_slider(facts["slider"], args.prompt, args.opposite)
    return about_gap("The embedding", facts.get("gap_closed"), "prompt")
