"""Measure how well DreamArtist learns new concepts from one image each.

Run `python -m ti_trainer.tiny_model.making.measure_one_image`.

Textual Inversion and DreamArtist are trained on the image without a caption, with the same number of U-Net evaluations,
each at its own best learning rate. Images are generated with a guidance scale of 3 and compared by colour: of the embedding
alone with the training image, and on other backgrounds with the concept drawn there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from ti_trainer import formats
from ti_trainer.config.training import TrainConfig
from ti_trainer.embedding import negative_name, unwanted
from ti_trainer.formats import embeddings_dir
from ti_trainer.host import GenerationRequest, ModelOptions
from ti_trainer.hosts.diffusers.host import StandaloneHost
from ti_trainer.model import Vectors
from ti_trainer.runs.run_folder import Run
from ti_trainer.runs.session import Session
from ti_trainer.tiny_model.making.measure_learning import colour_distance
from ti_trainer.tiny_model.making.scenes import CONCEPTS, SIZES, Scene, Thing, concept, draw, write_images

WORD, CFG_SCALE, MEASURED_WITH = "concept", 3.0, 12
VECTORS, NEGATIVE_VECTORS = 3, 6
# The best for the embedding alone (2026-11-21) of .001 and .003, for a pair also .0005, which moves faster.
RATE, RATE_OF_A_PAIR = "0.003", "0.001"
OF_THE_THING = 12  # of 765: pixels that differ by less between backgrounds are the concept
IN_THE_MIDDLE = 0.05  # of the image's width
PLAIN = TrainConfig(learning_rate=RATE, template="subject", ema_rate=0.97, preview_every=0, csv_every=0, precision="fp32")
DREAMARTIST = replace(
    PLAIN, learning_rate=RATE_OF_A_PAIR, negative=True, train_cfg_scale=str(CFG_SCALE), reconstruction_weight=1.0
)
WAYS = {  # the last two show the effect of each part
    "plain": PLAIN,
    "dreamartist": DREAMARTIST,
    "no reconstruction": replace(DREAMARTIST, reconstruction_weight=0.0),
    "reconstruction alone": replace(PLAIN, reconstruction_weight=1.0),
}
AVERAGED = ", moving average"
Distances = tuple[float, float]  # of the embedding alone, and on other backgrounds


def measure(model: str, thing: Thing, config: TrainConfig, evaluations: int) -> Iterator[tuple[str, Distances]]:
    """Mean distances after a number of U-Net evaluations: of the vectors, and of their moving average if there is one."""
    ((scene, where),) = _scenes(thing, 1, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        host = StandaloneHost(model, "auto", root / "embeddings", root / "logs")
        write_images(root / "image", [(scene, where)])
        word, negative = (WORD, thing.shape, VECTORS), (thing.shape, NEGATIVE_VECTORS)
        embeddings_dir.create_pair(host.embeddings_dir, host.open_model(ModelOptions("fp32")), word, negative)
        steps = evaluations // (2 if config.negative else 1)
        run = Session(host, WORD, root / "image", replace(config, max_steps=steps, save_every=0)).train().run
        for averaged in (False, True):
            for step, copy in run.copies(averaged=averaged):
                if step == steps:
                    yield AVERAGED * averaged, distances(host, words_of(run, copy), thing, scene)


def words_of(run: Run, copy: Path) -> dict[str, Vectors]:
    """The vectors of a copy of the word, and of its negative's."""
    negative = run.negative_of(copy)
    words: dict[str, Vectors] = {WORD: formats.read(copy).vectors}
    return words if negative is None else words | {negative_name(WORD): formats.read(negative).vectors}


def distances(host: StandaloneHost, words: dict[str, Vectors], thing: Thing, scene: Scene) -> Distances:
    """Of generated images; the negative prompt is the prompt with the negative word."""
    model, there = host.open_model(ModelOptions("fp32")), where_the_thing_is(scene)

    def generated(seed: int, where: str = "") -> np.ndarray:
        prompt = f"a photo of {WORD} {where}".rstrip()
        against = unwanted(prompt, WORD) if len(words) > 1 else ""
        return _values(host.generate(model, GenerationRequest(prompt, against, cfg_scale=CFG_SCALE, seed=seed), words))

    alone = [colour_distance(generated(seed), _values(draw(scene))) for seed in range(MEASURED_WITH)]
    elsewhere = [
        colour_distance(generated(seed, where)[there][None], _values(draw(other))[there][None])
        for seed, (other, where) in enumerate(_scenes(thing, MEASURED_WITH, seed=1000))
    ]
    return statistics.mean(alone), statistics.mean(elsewhere)


def where_the_thing_is(scene: Scene) -> np.ndarray:
    """(64, 64), True where other surroundings change nothing."""
    surroundings = (((0.0, 0.0, 1.0), (0.0, 0.0, 1.0)), ((1.0, 1.0, 0.0), (1.0, 1.0, 0.0)))
    first, second = (np.asarray(draw(replace(scene, top=top, bottom=bottom)), int) for top, bottom in surroundings)
    return np.abs(first - second).sum(2) < OF_THE_THING


def _scenes(thing: Thing, count: int, seed: int) -> list[tuple[Scene, str]]:
    """The thing on `count` backgrounds, always of the same size and in the middle, which prompts do not mention."""
    placed = concept(thing, 8 * count, seed)
    middle = [(scene, where) for scene, where in placed if max(map(abs, scene.position)) < IN_THE_MIDDLE]
    return [(replace(scene, size=SIZES[""], position=(0.0, 0.0), angle=0.0), where) for scene, where in middle[:count]]


def _values(image: Image.Image) -> np.ndarray:
    return np.asarray(image) / 255


def main() -> None:
    """Print a JSON line a concept, then means and standard deviations over concepts, and of how much nearer than plain."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--evaluations", type=int, default=4000, help="of the U-Net, by each way")
    parser.add_argument("--concepts", type=int, default=5)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=["plain", "dreamartist"])
    parser.add_argument("--learning-rate", help="of all ways (default: of each the one that suits it)")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each, whose distances are averaged")
    args = parser.parse_args()
    rows: list[dict[str, Distances]] = []
    for number, thing in enumerate(CONCEPTS[: args.concepts]):
        found: dict[str, list[Distances]] = {}
        for seed in range(args.seeds):
            for way in args.ways:
                config = replace(WAYS[way], seed=number + 100 * seed)
                if args.learning_rate:
                    config = replace(config, learning_rate=args.learning_rate)
                for which, each in measure(args.model, thing, config, args.evaluations):
                    found.setdefault(way + which, []).append(each)
        rows.append({way: tuple(map(statistics.mean, zip(*each, strict=True))) for way, each in found.items()})
        print(json.dumps({"concept": f"{thing.texture} {thing.shape}", **rows[-1], "all": found}), flush=True)
    first = args.ways[0]
    for number, what in enumerate(("alone", "in other surroundings")):
        for way in rows[0]:
            errors = [row[way][number] for row in rows]
            nearer = [1 - row[way][number] / row[first][number] for row in rows]
            print(f"{what}, {way}: {_spread(errors)}; nearer than {first} by {_spread(nearer)}, least {min(nearer):.3f}")


def _spread(numbers: Sequence[float]) -> str:
    deviation = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
    return f"mean {statistics.mean(numbers):.4f}, sd {deviation:.4f}"


if __name__ == "__main__":
    main()
