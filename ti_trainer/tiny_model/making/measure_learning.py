"""Measure how well concepts that the embedded model has not seen are learned with default settings.

Run `python -m ti_trainer.tiny_model.making.measure_learning`.

For each concept, an embedding is trained on 8 images and measured on 16 others: validation loss and colour distance of
generated images, for the embedding, its initial text (the name of the shape) and random vectors of usual length.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ti_trainer.config.training import TrainConfig
from ti_trainer.data.images import Frame
from ti_trainer.data.loading import DatasetOptions, load_dataset
from ti_trainer.data.prompts import NAME, Prompter
from ti_trainer.formats import embeddings_dir
from ti_trainer.host import GenerationRequest, ModelOptions
from ti_trainer.hosts.diffusers.host import StandaloneHost
from ti_trainer.hosts.diffusers.model import DiffusersModel
from ti_trainer.model import Vectors
from ti_trainer.runs.session import Session
from ti_trainer.tiny_model.making.scenes import CONCEPTS, Scene, Thing, concept, draw, write_images
from ti_trainer.training.evaluation import validation_loss

WORD = "concept"
TRAINED_ON, MEASURED_WITH = 8, 16
_DIRECTIONS = np.random.default_rng(0).normal(size=(3, 32))


def colour_distance(image: np.ndarray, other: np.ndarray) -> float:
    """Sliced Wasserstein distance between the colours of two images (H, W, 3) in [0, 1], regardless of position."""
    unit = _DIRECTIONS / np.linalg.norm(_DIRECTIONS, axis=0)
    first, second = (np.sort(each.reshape(-1, 3) @ unit, axis=0) for each in (image, other))
    return float(np.abs(first - second).mean())


def measure(
    host: StandaloneHost,
    model: DiffusersModel,
    thing: Thing,
    config: TrainConfig,
    num_vectors: int,
    measured_with: int = MEASURED_WITH,
) -> dict[str, dict[str, float]]:
    """Train one concept and compare; {"loss": {...}, "colour_distance": {...}}, each by `word`, `init_text` and `random`."""
    held_out = concept(thing, measured_with, seed=1000)
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), concept(thing, TRAINED_ON, seed=1))
        embeddings_dir.create(host.embeddings_dir, model, WORD, thing.shape, num_vectors, overwrite=True)
        learned = Session(host, WORD, Path(folder), config).train().embedding.vectors
        held_out_folder = Path(folder) / "held out"
        held_out_folder.mkdir()
        write_images(held_out_folder, held_out)
        frame = Frame((model.default_size_px, model.default_size_px))
        items = load_dataset(
            held_out_folder, model, frame, Prompter(WORD, [NAME]), DatasetOptions(latent_sampling="deterministic")
        ).items
    table = model.text_encoders[0].table.weight
    random = {
        "clip_l": torch.randn(num_vectors, model.widths["clip_l"], generator=torch.Generator().manual_seed(1)) * table.std()
    }
    texts: dict[str, tuple[str, dict[str, Vectors]]] = {
        "word": (WORD, {WORD: learned}),
        "init_text": (thing.shape, {}),
        "random": (WORD, {WORD: random}),
    }
    return {
        "loss": {
            key: validation_loss(model, items, [f"a photo of {text}, {where}" for _, where in held_out], embeddings)
            for key, (text, embeddings) in texts.items()
        },
        "colour_distance": {
            key: _distance(host, model, text, embeddings, held_out) for key, (text, embeddings) in texts.items()
        },
    }


def _distance(
    host: StandaloneHost, model: DiffusersModel, text: str, embeddings: dict[str, Vectors], scenes: list[tuple[Scene, str]]
) -> float:
    distances = []
    for seed, (scene, where) in enumerate(scenes):
        image = host.generate(model, GenerationRequest(f"a photo of {text} {where}", cfg_scale=3.0, seed=seed), embeddings)
        distances.append(colour_distance(np.asarray(image) / 255, np.asarray(draw(scene)) / 255))
    return statistics.mean(distances)


def main() -> None:
    """Print a line of JSON for each concept, then means and standard deviations over the concepts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--max-steps", type=int, default=300)
    parser.add_argument("--num-vectors", type=int, default=2)
    args = parser.parse_args()
    config = replace(TrainConfig(), max_steps=args.max_steps, preview_every=0)
    with tempfile.TemporaryDirectory() as folder:
        host = StandaloneHost(args.model, "auto", Path(folder) / "embeddings", Path(folder) / "logs")
        model = host.open_model(ModelOptions("fp32"))
        rows = []
        for thing in CONCEPTS:
            rows.append(measure(host, model, thing, config, args.num_vectors))
            print(json.dumps({"concept": f"{thing.texture} {thing.shape}", **rows[-1]}), flush=True)
    gains = [1 - row["loss"]["word"] / row["loss"]["init_text"] for row in rows]
    nearer = [1 - row["colour_distance"]["word"] / row["colour_distance"]["init_text"] for row in rows]
    random = [1 - row["colour_distance"]["random"] / row["colour_distance"]["init_text"] for row in rows]
    for name, values in (("loss falls by", gains), ("nearer in colour by", nearer), ("random vectors nearer by", random)):
        print(f"{name}: mean {statistics.mean(values):.3f}, sd {statistics.stdev(values):.3f}, least {min(values):.3f}")


if __name__ == "__main__":
    main()
