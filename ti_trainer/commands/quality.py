"""quality: what training options teach the embedded model, or how good an embedding for your own model is."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ti_trainer.commands.common import add_host_arguments, host_of
from ti_trainer.commands.terminal import number_of
from ti_trainer.config.training import TrainConfig, options
from ti_trainer.errors import ConfigError

HELP = "compare training options on the embedded model by likeness and obedience, or measure an embedding of your own model"
RESULTS = Path("quality.jsonl")
CAPTIONS = {"with": (True,), "without": (False,), "both": (True, False)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    grid = parser.add_argument_group("comparing training options on the embedded model")
    grid.add_argument(
        "--variant",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "OPTION=VALUE"),
        help="a name, and training options such as optimizer=sphere learning_rate=auto; may be repeated. The others are "
        "compared with the first (default: one variant with default options)",
    )
    grid.add_argument(
        "--results",
        type=Path,
        default=RESULTS,
        metavar="FILE",
        help="file of results; runs in it are not repeated (%(default)s)",
    )
    whole = number_of(int)
    for flag, default, what in (
        ("--concepts", tuple(range(12)), "numbers of the concepts, 0 to 11"),
        ("--seeds", (0, 1, 2), "random seeds"),
        ("--num-images", (1, 4, 8), "numbers of training images"),
        ("--num-vectors", (1, 2, 8), "numbers of vectors"),
        ("--steps", (300,), "numbers of training steps"),
    ):
        shown = " ".join(map(str, default))
        grid.add_argument(flag, type=whole, nargs="+", default=default, metavar="N", help=f"{what} (default: {shown})")
    grid.add_argument("--captions", choices=CAPTIONS, default="both", help="train with captions or without (default: both)")
    grid.add_argument("--only-table", action="store_true", help="run nothing: summarize the results that there are")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_host_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, and print a table or JSON."""
    return _compare(args)


def _compare(args: argparse.Namespace) -> int:
    from ti_trainer.benchmark import quality, quality_table
    from ti_trainer.host import ModelOptions

    variants = variants_of(args.variant)
    grid = quality.Grid(args.concepts, args.seeds, args.num_images, CAPTIONS[args.captions], args.num_vectors, args.steps)
    quality.check(grid, args.results)
    if args.only_table:
        records = quality.finished(grid, variants, args.results)
    else:
        model = host_of(args).open_model(ModelOptions("fp32"))
        records = quality.measure(model, grid, variants, args.results, _report)
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
    known = {each.name: each for each in options()}
    variants: dict[str, dict[str, Any]] = {}
    for name, *pairs in given:
        values: dict[str, Any] = {}
        for pair in pairs:
            key, equals, text = pair.partition("=")
            key = key.replace("-", "_")
            if not equals or key not in known:
                message = f"--variant {name}: found {pair!r}, expected OPTION=VALUE with the name of a training option."
                raise ConfigError(message)
            values[key] = text == "true" if known[key].type is bool else known[key].read(text)
        TrainConfig.from_dict(values)
        variants[name] = values
    return variants or {"defaults": {}}
