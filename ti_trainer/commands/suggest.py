"""suggest: rank texts that an embedding for some images could start from."""

from __future__ import annotations

import argparse
from pathlib import Path

from ti_trainer.commands.common import add_host_arguments, add_model_options, host_of, model_options
from ti_trainer.commands.terminal import moves

HELP = "suggest an initial text for an embedding, by the validation loss of its images without training"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--images", type=Path, required=True, metavar="DIR", help="images of the subject: a dataset as for train"
    )
    parser.add_argument(
        "--text",
        action="append",
        default=[],
        metavar="TEXT",
        help="a text to rank, such as 'wooden toy', besides words of the captions and common words; may be repeated",
    )
    add_host_arguments(parser)
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print the ranking, the best text first."""
    from tqdm import tqdm

    from ti_trainer.data.subsets import read_subsets
    from ti_trainer.runs.init_text import rank

    subsets = read_subsets(args.images)
    model = host_of(args).open_model(model_options(args))
    with tqdm(desc="Measuring texts", unit="text", leave=False) as bar:
        ranking = rank(model, subsets, args.text, moves(bar))
    print(f"{ranking.summary} Validation loss, compared with no text:")
    for text, gain in ranking.rows():
        print(f"  {gain:<14} {text}")
    print(ranking.advice)
    return 0
