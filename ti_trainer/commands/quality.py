"""quality: what training options teach the embedded model, or how good an embedding for your own model is."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ti_trainer.commands.common import add_host_arguments, add_model_options, host_of, model_options
from ti_trainer.commands.terminal import number_of
from ti_trainer.config.options import Option
from ti_trainer.config.training import TrainConfig, options
from ti_trainer.errors import ConfigError
from ti_trainer.hosts.diffusers import defaults
from ti_trainer.wording import counted

if TYPE_CHECKING:
    from PIL import Image

    from ti_trainer.benchmark.quality_own import Scores
    from ti_trainer.host import GenerationRequest
    from ti_trainer.hosts.diffusers.host import StandaloneHost
    from ti_trainer.hosts.diffusers.model import DiffusersModel
    from ti_trainer.model import Vectors

HELP = "compare training options on the embedded model by likeness and obedience, or measure an embedding of your own model"
RESULTS = Path("quality.jsonl")
OWN: Mapping[str, Any] = {"init_text": None, "prompts": None, "similarity": None, "samples": 4}  # arguments, with defaults
COMPARING: Mapping[str, Any] = {  # likewise
    "variant": [],
    "results": RESULTS,
    "concepts": tuple(range(12)),
    "seeds": (0, 1, 2),
    "num_images": (1, 4, 8),
    "num_vectors": (1, 2, 8),
    "steps": (300,),
    "captions": "both",
    "only_table": False,
}
OF_ALL_VARIANTS = {"max_steps": "--steps", "seed": "--seeds", "clip_skip": "--clip-skip"}  # options, with flags for them
WITHOUT_EFFECT = ("stop_when_done", "width", "height", "do_not_resize", "buckets")  # as options of the sections below
SECTIONS_WITHOUT_EFFECT = ("trials", "teacher", "previews", "advanced")
TITLES = {
    "image_image": "Similarity to the images",
    "image_text": "Similarity to the prompts",
    "word": "embedding",
    "init_text": "init text",
    "difference": "difference",
}
CAPTIONS = {"with": (True,), "without": (False,), "both": (True, False)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    grid = parser.add_argument_group("comparing training options on the embedded model")
    grid.add_argument(
        "--variant",
        nargs="+",
        action="append",
        default=[],
        metavar="VARIANT",
        help="NAME OPTION=VALUE ...: training options under a name, such as 'sphere optimizer=sphere learning_rate=auto'; "
        "may be repeated. The others are compared with the first (default: one variant with default options)",
    )
    grid.add_argument(
        "--results",
        type=Path,
        default=RESULTS,
        metavar="FILE",
        help="file of results; runs in it are not repeated (default: %(default)s)",
    )
    whole = number_of(int)
    for name, what in (
        ("concepts", "numbers of the concepts, 0 to 11"),
        ("seeds", "random seeds"),
        ("num_images", "numbers of training images"),
        ("num_vectors", "numbers of vectors"),
        ("steps", "numbers of training steps"),
    ):
        text = f"{what} (default: {' '.join(map(str, COMPARING[name]))})"
        grid.add_argument(_flag(name), type=whole, nargs="+", default=COMPARING[name], metavar="N", help=text)
    grid.add_argument("--captions", choices=CAPTIONS, default="both", help="train with captions or without (default: both)")
    grid.add_argument("--only-table", action="store_true", help="run nothing: summarize the results that there are")
    own = parser.add_argument_group("measuring an embedding of your own model")
    own.add_argument("name", nargs="?", metavar="NAME", help="name of the embedding; with --images")
    own.add_argument("--images", type=Path, metavar="DIR", help="images of the subject, ideally none that it was trained on")
    own.add_argument("--init-text", metavar="TEXT", help="text to compare with (default: the initial text of the embedding)")
    own.add_argument("--prompts", type=Path, metavar="FILE", help="prompts with [name], one a line, to generate images of")
    own.add_argument(
        "--similarity", type=Path, metavar="DIR", help="folder of a CLIP or DINO of transformers that compares these images"
    )
    own.add_argument(
        "--samples", type=whole, default=OWN["samples"], metavar="N", help="images for each prompt (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_host_arguments(parser)
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, and print a table or JSON."""
    compares = args.name is None and args.images is None
    others = OWN if compares else COMPARING
    given = ", ".join(_flag(name) for name, default in others.items() if getattr(args, name) != default)
    if not compares and (args.name is None or args.images is None):
        message = "To measure an embedding, give its NAME and --images; to compare training options, give neither."
        raise ConfigError(message)
    if given:
        found, expected = ("without", "with") if compares else ("with", "without")
        message = f"{given}: found {found} NAME and --images, expected {expected} them."
        raise ConfigError(message)
    if compares:
        return _compare(args)
    if args.samples < 1:
        message = f"--samples: found {args.samples}, expected at least 1."
        raise ConfigError(message)
    if (args.prompts is None) != (args.similarity is None):
        message = "--prompts and --similarity belong together: give both, or neither to measure the loss only."
        raise ConfigError(message)
    return _own(args)


def _own(args: argparse.Namespace) -> int:
    """Measure an embedding on the user's images."""
    from ti_trainer.commands import evaluate

    args.negative, args.train_cfg_scale, args.prompt = False, TrainConfig.train_cfg_scale, ""
    host = host_of(args)
    similarity = _similarity(args, host) if args.similarity is not None else None
    facts, texts = evaluate.measure(args, host)
    if similarity is not None:
        facts["similarity"] = similarity()
    if args.json:
        print(json.dumps(facts))
        return 0
    losses = facts["loss"]
    print(f"Validation loss on {counted(facts['images'], 'image')} (lower is better):")
    for key, text in texts.items():
        gain = 1 - losses["word"] / losses[key]
        compared = f"{abs(gain):.1%} {'lower' if gain >= 0 else 'higher'}"
        print(f"  {losses[key]:.5f}  {text}" + ("" if key == "word" else f"; that of the embedding is {compared}"))
    for measure, values in facts.get("similarity", {}).items():
        errors = {key: f" +- {each['se']:.3f}" if "se" in each else "" for key, each in values.items()}
        found = ", ".join(f"{TITLES[key]} {each['mean']:.3f}{errors[key]}" for key, each in values.items())
        print(f"{TITLES[measure]}: {found}")
    return 0


def _similarity(args: argparse.Namespace, host: StandaloneHost) -> Callable[[], Scores]:
    """What measures the similarity of generated images to the user's images and to the prompts; all is checked before."""
    from functools import partial

    from ti_trainer.benchmark import quality_own
    from ti_trainer.formats import embeddings_dir
    from ti_trainer.host import GenerationRequest
    from ti_trainer.workbench.similarity import Similarity

    prompts = quality_own.read_prompts(args.prompts)
    embedding, _ = embeddings_dir.load(host.embeddings_dir, args.name)
    init_text = args.init_text if args.init_text is not None else embedding.info.get("init_text")
    if not init_text:
        message = f"{args.name} has no initial text to compare with: give one with --init-text."
        raise ConfigError(message)
    model = host.open_model(model_options(args, "fp32"))
    similarity = Similarity.load(args.similarity, model.device)
    generate = {
        "word": partial(_image, host, model, {embedding.name: embedding.vectors}),
        "init_text": partial(_image, host, model, {}),
    }
    names = {"word": embedding.name, "init_text": init_text}
    return partial(
        quality_own.scores, similarity, generate, names, prompts, args.images, args.samples, GenerationRequest("")
    )


def _image(
    host: StandaloneHost, model: DiffusersModel, embeddings: Mapping[str, Vectors], request: GenerationRequest
) -> Image.Image:
    return host.generate(model, request, embeddings)


def _compare(args: argparse.Namespace) -> int:
    from ti_trainer.benchmark import quality, quality_table

    if args.model != defaults.MODEL:
        message = (
            f"--model {args.model}: training options are compared on the embedded model; for yours, give NAME and --images."
        )
        raise ConfigError(message)
    variants = variants_of(args.variant)
    grid = quality.Grid(args.concepts, args.seeds, args.num_images, CAPTIONS[args.captions], args.num_vectors, args.steps)
    quality.check(grid, args.results)
    if args.only_table:
        records = quality.finished(grid, variants, args.results)
    else:
        model = host_of(args).open_model(model_options(args, "fp32"))
        records = quality.measure(model, grid, variants, args.results, _report)
    if not records:
        message = f"{args.results} has no result of these runs: leave out --only-table to make them."
        raise ConfigError(message)
    facts = quality_table.summary(records)
    print(json.dumps(facts) if args.json else quality_table.table(facts))
    return 0


def _report(record: dict[str, Any], done: int, total: int) -> None:
    result = record["result"]
    print(
        f"{done} of {total}: {record['variant']}, concept {record['concept']}, seed {record['seed']}: loss "
        f"{result['loss']:.4f}, place {result['place']:.0%}, colour override {result['colour']:.0%}",
        file=sys.stderr,
        flush=True,
    )


def variants_of(given: Sequence[Sequence[str]]) -> dict[str, dict[str, Any]]:
    """Options by the names of variants; ConfigError for options that do not exist or have invalid values."""
    from ti_trainer.benchmark.quality_table import INIT_TEXT

    known = {each.name: each for each in options()}
    variants: dict[str, dict[str, Any]] = {}
    for name, *pairs in given:
        if "=" in name or name in (INIT_TEXT, *variants):
            expected = "a name before OPTION=VALUE" if "=" in name else "another name: this one is used already"
            message = f"--variant: found {name!r}, expected {expected}."
            raise ConfigError(message)
        values: dict[str, Any] = {}
        for pair in pairs:
            key, equals, text = pair.partition("=")
            key = key.replace("-", "_")
            if not equals or key not in known:
                message = f"--variant {name}: found {pair!r}, expected OPTION=VALUE with the name of a training option."
                raise ConfigError(message)
            _check_effect(name, known[key])
            truths = {"true": True, "false": False} if known[key].type is bool else {}
            values[key] = truths.get(text.lower(), known[key].read(text))
        TrainConfig.from_dict(values)
        variants[name] = values
    return variants or {"defaults": {}}


def _check_effect(variant: str, option: Option) -> None:
    """ConfigError for an option that the comparison does not use, or sets itself."""
    if option.name in OF_ALL_VARIANTS:
        message = f"--variant {variant}: found {option.name}, expected {OF_ALL_VARIANTS[option.name]}, for all variants."
        raise ConfigError(message)
    if option.name in WITHOUT_EFFECT or option.section in SECTIONS_WITHOUT_EFFECT:
        message = f"--variant {variant}: {option.name} is not used in this comparison. Leave it out."
        raise ConfigError(message)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
