"""generate: see what a prompt draws, with the embeddings of the folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from ti_trainer import embeddings_dir
from ti_trainer.commands.common import add_host_arguments, host_of
from ti_trainer.files import atomic
from ti_trainer.host import Drawing

HELP = "draw a picture from a prompt, in which your embeddings are words"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what it takes."""
    parser.add_argument("prompt", metavar="PROMPT", help='such as "a picture of NAME"')
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="where the picture goes (.png)")
    parser.add_argument("--negative-prompt", default="", metavar="TEXT", help="what it shall not show")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="sampling steps (default: %(default)s)")
    parser.add_argument(
        "--cfg-scale", type=float, default=7.0, metavar="X", help="how strictly to follow the prompt (default: %(default)s)"
    )
    parser.add_argument("--width", type=int, default=0, metavar="PX", help="0: what the model was made for")
    parser.add_argument("--height", type=int, default=0, metavar="PX", help="0: what the model was made for")
    parser.add_argument("--clip-skip", type=int, default=1, metavar="N", help="(default: %(default)s)")
    add_host_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Draw it and say where it is."""
    host = host_of(args)
    model = host.open_model("auto", args.clip_skip)
    words = embeddings_dir.words(host.embeddings_dir, model)
    drawing = Drawing(args.prompt, args.negative_prompt, args.steps, args.cfg_scale, args.seed, args.width, args.height)
    picture = host.draw(model, drawing, words)
    with atomic(args.out) as new:
        picture.save(new)
    print(f"Wrote {args.out}.")
    return 0
