"""inspect: norms of an embedding's vectors, the nearest tokens and embeddings, the drift of a run, a prompt as tokens."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ti_trainer.commands.common import add_host_arguments, host_of
from ti_trainer.commands.terminal import number_of
from ti_trainer.errors import ConfigError

if TYPE_CHECKING:
    from ti_trainer.embedding import Embedding
    from ti_trainer.hosts.diffusers.host import StandaloneHost
    from ti_trainer.workbench.drift import Drift
    from ti_trainer.workbench.inspect import EncoderReport, Near
    from ti_trainer.workbench.prompt_view import PromptView

HELP = "show norms and nearest tokens of embeddings, the drift of a run, or a prompt as tokens"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "files", type=Path, nargs="*", metavar="FILE", help="embeddings in any format, or folders of training runs"
    )
    parser.add_argument("--prompt", metavar="TEXT", help="show this prompt as the model gets it: tokens, chunks, weights")
    parser.add_argument(
        "--nearest",
        type=number_of(int),
        default=5,
        metavar="N",
        help="nearest tokens and embeddings for each vector; 0 needs no model (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per file and prompt, one per line")
    add_host_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Describe each file, run folder and prompt."""
    if not args.files and args.prompt is None:
        message = "There is nothing to inspect: name a file or the folder of a run, or give a prompt with --prompt."
        raise ConfigError(message)
    if not 0 <= args.nearest <= 100:
        message = f"--nearest: found {args.nearest}, expected 0 to 100."
        raise ConfigError(message)
    host = host_of(args)
    for file in args.files:
        if (file / "settings.json").is_file():
            _print_drift(file, as_json=args.json)
        else:
            _print_embedding(file, host, args)
    if args.prompt is not None:
        _print_prompt(host, args.prompt, as_json=args.json)
    return 0


def _print_embedding(file: Path, host: StandaloneHost, args: argparse.Namespace) -> None:
    from ti_trainer import formats
    from ti_trainer.commands.info import describe, line
    from ti_trainer.workbench.inspect import as_json, inspect

    embedding = formats.read(file)
    model = host.open_model() if args.nearest else None
    others = _others(host, embedding, file) if args.nearest else {}
    reports = inspect(embedding, model, others, args.nearest)
    facts = describe(file)
    if args.json:
        print(json.dumps({**facts, "encoders": as_json(reports)}))
        return
    print(line(file, facts))
    for report in reports:
        print("\n".join(_lines(report, model.name if model else "")))


def _others(host: StandaloneHost, embedding: Embedding, file: Path) -> dict[str, Embedding]:
    """The embeddings in the folder, without the file itself."""
    from ti_trainer.workbench.others import embeddings_beside

    return embeddings_beside(host.embeddings_dir, embedding, file).embeddings


def _lines(report: EncoderReport, model: str) -> list[str]:
    from ti_trainer.workbench.inspect import quantiles, shown_token

    lines = [f"{report.encoder}, width {report.width}:"]
    if report.vocabulary is not None:
        low, median, high = quantiles(report.vocabulary)
        lines.append(f"  norms in the vocabulary of {model}: median {median:.4g}, 90% between {low:.4g} and {high:.4g}")
    elif model:
        lines.append(f"  {model} has no text encoder like this: no nearest tokens")
    for number, norm in enumerate(report.norms):
        rank = report.rank_of(float(norm))
        where = "" if rank is None else f" (larger than {100 * rank:.0f}% of the vocabulary)"
        lines.append(f"  vector {number + 1}: norm {norm:.4g}{where}")
        if report.tokens:
            lines.append(
                "    tokens: " + _listed(report.tokens[number], lambda near: f"{shown_token(near.name)} #{near.number}")
            )
        if report.embeddings and report.embeddings[number]:
            lines.append("    embeddings: " + _listed(report.embeddings[number], _place))
    return lines


def _listed(near: Any, shown: Any) -> str:
    return ", ".join(f"{shown(each)} {each.similarity:.3f}" for each in near)


def _place(near: Near) -> str:
    return f"{near.name}[{near.number + 1}]"


def _print_drift(folder: Path, *, as_json: bool) -> None:
    from ti_trainer.runs.run_folder import Run
    from ti_trainer.workbench.drift import drift_of

    run = Run(folder)
    drift: Drift = drift_of(run)
    if as_json:
        copies = [{"step": each.step, "similarity": each.similarity, "norm": each.norm} for each in drift.points]
        print(json.dumps({"run": str(folder), "copies": copies, "skipped": drift.skipped}))
        return
    if not drift.points:
        print(f"{folder}: the run has no copies to compare.")
    for each in drift.points:
        parts = [
            f"{name} similarity to the first {each.similarity[name]:.4f}, norm {each.norm[name]:.4g}" for name in each.norm
        ]
        print(f"step {each.step}: {'; '.join(parts)}")
    for reason in drift.skipped:
        print(f"Skipped: {reason}")


def _print_prompt(host: StandaloneHost, prompt: str, *, as_json: bool) -> None:
    from ti_trainer.formats import embeddings_dir
    from ti_trainer.workbench.prompt_view import view

    model = host.open_model()
    seen: PromptView = view(model, prompt, *embeddings_dir.usable(host.embeddings_dir, model))
    if as_json:
        chunks = [
            [{"text": each.text, "id": each.token_id, "weight": each.weight, "tokens": each.count} for each in chunk]
            for chunk in seen.chunks
        ]
        print(json.dumps({"prompt": prompt, "chunks": chunks, "notes": seen.notes, "warnings": seen.warnings}))
        return
    for number, (chunk, size) in enumerate(zip(seen.chunks, seen.sizes, strict=True), 1):
        print(f"chunk {number}, {size} of 75 tokens: " + " | ".join(map(_piece, chunk)))
    for each in (*seen.notes, *seen.warnings):
        print(each)


def _piece(piece: Any) -> str:
    what = f"{piece.text} [{piece.count} vectors]" if piece.token_id is None else f"{piece.text} #{piece.token_id}"
    return what if piece.weight == 1 else f"{what} x {piece.weight:.3g}"
