"""evaluate: how much better the word explains images than the text it began as."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ti_trainer.commands.common import add_host_arguments, add_model_options, host_of, model_options
from ti_trainer.config.training import TrainConfig
from ti_trainer.data.images import Frame
from ti_trainer.data.loading import DatasetOptions, load_dataset
from ti_trainer.data.prompts import NAME, Prompter
from ti_trainer.data.subsets import read_subsets
from ti_trainer.embedding import negative_name, unwanted
from ti_trainer.formats import embeddings_dir
from ti_trainer.functional.guidance import GuidanceScale
from ti_trainer.model import check_fits
from ti_trainer.prompts import escaped
from ti_trainer.training.evaluation import described, validation_loss

HELP = "measure how well a word explains images, best ones that it was not trained on"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what it takes."""
    parser.add_argument("name", metavar="NAME", help="an embedding of the folder")
    parser.add_argument(
        "--images",
        type=Path,
        required=True,
        metavar="DIR",
        help="images of what it was taught, captioned or not; a dataset as for train",
    )
    parser.add_argument("--init-text", metavar="TEXT", help="what to compare with (default: the text it was created from)")
    parser.add_argument(
        "--negative", action="store_true", help="measure NAME guided away from NAME-neg, as they were trained together"
    )
    parser.add_argument(
        "--train-cfg-scale", default=TrainConfig.train_cfg_scale, metavar="S", help="of that training (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_host_arguments(parser)
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    host = host_of(args)
    embedding, _ = embeddings_dir.load(host.embeddings_dir, args.name)
    words, scale, negative_text = {embedding.name: embedding.vectors}, None, None
    against = negative_name(embedding.name)
    if args.negative:
        scale = GuidanceScale.parse(args.train_cfg_scale)
        negative, _ = embeddings_dir.load_negative(host.embeddings_dir, embedding.name)
        words[against], negative_text = negative.vectors, negative.info.get("init_text")
    elif embeddings_dir.find(host.embeddings_dir, against) is not None:
        print(
            f"Measured without {against}, which is there: if both were trained together, pass --negative.", file=sys.stderr
        )
    init_text = args.init_text if args.init_text is not None else embedding.info.get("init_text")
    model = host.open_model(model_options(args, "fp32"))
    check_fits(model, embedding)
    dataset = load_dataset(
        [subset for subset in read_subsets(args.images) if not subset.is_reg],
        model,
        Frame((model.default_size_px, model.default_size_px)),
        Prompter(embedding.name, [NAME]),
        DatasetOptions(latent_sampling="deterministic"),
    )
    said = {"word": escaped(embedding.name), "init_text": escaped(init_text or "")}
    texts = {**{key: f"a photo of {text}" for key, text in said.items()}, "no_word": "a photo"}
    if init_text is None:
        del texts["init_text"]
    # All are guided alike: what the word began as away from what its negative began as, nothing from nothing.
    begun_against = f"a photo of {negative_text}" if negative_text else "a photo"
    losses = {}
    for key, text in texts.items():
        prompts = [described(text, item.caption or "") for item in dataset.items]
        if key == "word":
            unsaid = [unwanted(prompt, embedding.name) for prompt in prompts]
        else:
            against_text = begun_against if key == "init_text" else text
            unsaid = [described(against_text, item.caption or "") for item in dataset.items]
        spoken = words if key == "word" else {}  # which may be a part of the other texts
        losses[key] = validation_loss(model, dataset.items, prompts, spoken, scale, unsaid if scale else ())
    gain = 1 - losses["word"] / losses["init_text"] if init_text is not None else None
    facts = {
        "name": embedding.name,
        "step": embedding.step,
        "images": len(dataset.items),
        "loss": losses,
        "better_than_init_text": gain,
    }
    if args.json:
        print(json.dumps(facts))
        return 0
    how = f", guided at a scale of {args.train_cfg_scale}" if scale else ""
    print(f"Validation loss of {len(dataset.items)} images, each with its caption{how} (lower is better):")
    for key, text in texts.items():
        print(f"  {losses[key]:.5f}  {text}")
    if gain is not None:
        print(f"The word explains them {abs(gain):.0%} {'better' if gain >= 0 else 'worse'} than its init text.")
    return 0
