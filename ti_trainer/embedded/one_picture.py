"""Measures DreamArtist: concepts that no caption names, each from one picture. `python -m ti_trainer.embedded.one_picture`.

Plain Textual Inversion and DreamArtist see the picture in the same number of U-Net evaluations, at the same learning rate.
Measured are pictures that they generate at CFG scale 3 in other surroundings than the training picture's: the distance of
colours of the thing, however large it is drawn, and that of whole pictures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ti_trainer import embeddings_dir
from ti_trainer.config import TrainConfig
from ti_trainer.embedded.learning import colour_distance
from ti_trainer.embedded.scenes import CONCEPTS, Scene, Thing, concept, draw, write_pictures
from ti_trainer.embedding import unwanted
from ti_trainer.host import Drawing, ModelOptions
from ti_trainer.hosts.diffusers.host import StandaloneHost
from ti_trainer.training.session import Session

WORD, CFG_SCALE, MEASURED_WITH = "concept", 3.0, 12
VECTORS, NEGATIVE_VECTORS = 3, 6
APART, PIXELS = 0.15, 2048  # how far colours of the thing are from those behind it; how many are compared
PLAIN = TrainConfig(preview_every=0, save_every=0, csv_every=0, precision="fp32")
DREAMARTIST = replace(PLAIN, negative=True, train_cfg_scale=str(CFG_SCALE), ema_rate=0.97, reconstruction_weight=1.0)
WAYS = {  # the others say what each part brings
    "plain": PLAIN,
    "dreamartist": DREAMARTIST,
    "no reconstruction": replace(DREAMARTIST, reconstruction_weight=0.0),
    "reconstruction alone": replace(PLAIN, reconstruction_weight=1.0),
}


def measure(model: str, thing: Thing, config: TrainConfig, evaluations: int) -> tuple[float, float]:
    """Mean distances of what is generated after so many U-Net evaluations: of things, and of whole pictures."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        host = StandaloneHost(model, "auto", root / "embeddings", root / "logs")
        opened = host.open_model(ModelOptions("fp32"))
        write_pictures(root / "picture", concept(thing, 1, seed=1))
        word, negative = (WORD, thing.shape, VECTORS), (thing.shape, NEGATIVE_VECTORS)
        embeddings_dir.create_pair(host.embeddings_dir, opened, word, negative)
        steps = evaluations // (2 if config.negative else 1)
        Session(host, WORD, root / "picture", replace(config, max_steps=steps)).train()
        return distances(host, concept(thing, MEASURED_WITH, seed=1000), negative=config.negative)


def distances(host: StandaloneHost, scenes: Sequence[tuple[Scene, str]], *, negative: bool) -> tuple[float, float]:
    """Of pictures of the word in these scenes' surroundings; the negative prompt is the prompt with the negative word."""
    model, things, pictures = host.open_model(ModelOptions("fp32")), [], []
    words = embeddings_dir.words(host.embeddings_dir, model)
    for seed, (scene, where) in enumerate(scenes):
        prompt = f"a photo of {WORD} {where}"
        drawing = Drawing(prompt, unwanted(prompt, WORD) if negative else "", cfg_scale=CFG_SCALE, seed=seed)
        made, true = (np.asarray(each) / 255 for each in (host.draw(model, drawing, words), draw(scene)))
        things.append(colour_distance(_of_the_thing(made, scene), _of_the_thing(true, scene)))
        pictures.append(colour_distance(made, true))
    return statistics.mean(things), statistics.mean(pictures)


def _of_the_thing(picture: np.ndarray, scene: Scene) -> np.ndarray:
    """(1, PIXELS, 3) that differ from the scene's surroundings, spread evenly over all that do, or over all."""
    empty = np.asarray(draw(replace(scene, size=1e-3))) / 255
    found = picture[np.abs(picture - empty).max(axis=2) > APART]
    found = found if len(found) else picture.reshape(-1, 3)
    return found[np.linspace(0, len(found) - 1, PIXELS).round().astype(int)][None]


def main() -> None:
    """Print a JSON line a concept, then means and standard deviations over concepts, and of how much nearer than plain."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--evaluations", type=int, default=4000, help="of the U-Net, by each way")
    parser.add_argument("--concepts", type=int, default=5)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=["plain", "dreamartist"])
    parser.add_argument("--learning-rate", default=PLAIN.learning_rate)
    args = parser.parse_args()
    rows = []
    for seed, thing in enumerate(CONCEPTS[: args.concepts]):
        configs = {way: replace(WAYS[way], learning_rate=args.learning_rate, seed=seed) for way in args.ways}
        rows.append({way: measure(args.model, thing, config, args.evaluations) for way, config in configs.items()})
        print(json.dumps({"concept": f"{thing.texture} {thing.shape}", **rows[-1]}), flush=True)
    for number, what in enumerate(("things", "pictures")):
        for way in args.ways:
            found = [row[way][number] for row in rows]
            nearer = [1 - row[way][number] / row[args.ways[0]][number] for row in rows]
            least = f"least {min(nearer):.3f}"
            print(f"{what}, {way}: {_spread(found)}; nearer than {args.ways[0]} by {_spread(nearer)}, {least}")


def _spread(numbers: Sequence[float]) -> str:
    deviation = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
    return f"mean {statistics.mean(numbers):.4f}, sd {deviation:.4f}"


if __name__ == "__main__":
    main()
