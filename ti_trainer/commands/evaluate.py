"""evaluate: how much better the word explains pictures than the text it began as."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import torch

from ti_trainer import embeddings_dir
from ti_trainer.commands.common import add_host_arguments, host_of
from ti_trainer.data.dataset import BROKEN_PICTURE
from ti_trainer.data.images import Frame, find_images, load_image
from ti_trainer.errors import ConfigError, DatasetError
from ti_trainer.model import DiffusionModel
from ti_trainer.training.evaluate import deterministic_loss

HELP = "measure how well a word explains pictures, best ones that it was not trained on"
log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what it takes."""
    parser.add_argument("name", metavar="NAME", help="an embedding of the folder")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="pictures of what it was taught")
    parser.add_argument("--init-text", metavar="TEXT", help="what to compare with (default: the text it was created from)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_host_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    host = host_of(args)
    embedding, _ = embeddings_dir.load(host.embeddings_dir, args.name)
    init_text = args.init_text if args.init_text is not None else embedding.info.get("init_text")
    model = host.open_model("fp32")
    if embedding.widths != dict(model.widths):
        family = embedding.family
        message = (
            f"The embedding {embedding.name!r} is for {family} models, not for {model.name}: choose a --model of its kind."
        )
        raise ConfigError(message)
    latents = _latents(model, args.images)
    words = {embedding.name: embedding.vectors}
    prompts = {"word": f"a photo of {embedding.name}", "init_text": f"a photo of {init_text}", "no_word": "a photo"}
    if init_text is None:
        del prompts["init_text"]
    losses = {key: deterministic_loss(model, latents, prompt, words) for key, prompt in prompts.items()}
    gain = 1 - losses["word"] / losses["init_text"] if init_text is not None else None
    facts = {
        "name": embedding.name,
        "step": embedding.step,
        "images": len(latents),
        "loss": losses,
        "better_than_init_text": gain,
    }
    if args.json:
        print(json.dumps(facts))
        return 0
    print(f"Deterministic loss of {len(latents)} pictures (lower is better):")
    for key, prompt in prompts.items():
        print(f"  {losses[key]:.5f}  {prompt}")
    if gain is not None:
        print(f"The word explains them {abs(gain):.0%} {'better' if gain >= 0 else 'worse'} than its init text.")
    return 0


def _latents(model: DiffusionModel, folder: Path) -> list[torch.Tensor]:
    frame, latents = Frame((model.default_size_px, model.default_size_px)), []
    for path in find_images(folder):
        try:
            pixels, _ = load_image(path, frame)
        except BROKEN_PICTURE as error:
            log.warning("Skipped: %s (%s)", path.name, error)
            continue
        latents.append(model.encode_images(pixels[None])[0][0])
    if not latents:
        message = f"None of the pictures in {folder} can be read."
        raise DatasetError(message)
    return latents
