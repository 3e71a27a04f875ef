"""bench: steps per second, beside a bare loop and other trainers, in turn in one run."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import mse_loss

from ti_trainer import embedded
from ti_trainer.commands.common import add_host_arguments, host_of
from ti_trainer.commands.peers import PEERS, Peer
from ti_trainer.config import TrainConfig
from ti_trainer.data.dataset import Dataset, load_dataset
from ti_trainer.data.images import Frame
from ti_trainer.data.prompts import Prompter, load_template
from ti_trainer.embedding import Embedding, initial_vectors
from ti_trainer.errors import ConfigError
from ti_trainer.host import ModelOptions
from ti_trainer.hosts.diffusers.model import DiffusersModel
from ti_trainer.model import Conditioning
from ti_trainer.training.evaluate import deterministic_loss
from ti_trainer.training.trainer import Trainer

HELP = "measure steps per second, against a bare loop and, if their checkouts are given, other trainers"
NAME, INIT_TEXT = "bench", "star"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what it takes."""
    parser.add_argument(
        "--steps", type=int, default=200, metavar="N", help="steps of each measurement (default: %(default)s)"
    )
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4], metavar="B", help="(default: 1 4)")
    parser.add_argument("--images", type=Path, default=embedded.DEMO, metavar="DIR", help="(default: the demo's)")
    parser.add_argument(
        "--against", nargs="*", default=[], metavar="PEER=DIR", help=f"other trainers, by checkout: {', '.join(PEERS)}=DIR"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_host_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Measure and print a table or JSON."""
    for flag, value, least in (("--steps", args.steps, 10), *(("--batch-sizes", each, 1) for each in args.batch_sizes)):
        if value < least:
            message = f"{flag}: found {value}, expected at least {least}."
            raise ConfigError(message)
    peers = [_peer(text) for text in args.against]
    host = host_of(args)
    model = host.open_model(ModelOptions("fp32" if peers else "auto"))
    folder = embedded.MODEL if args.model == "embedded" else Path(args.model)
    if peers and not (folder / "model_index.json").is_file():
        message = f"--against needs a model in diffusers' layout, which peers can open; {args.model} is none."
        raise ConfigError(message)
    rows = [measure(model, args.images, batch_size, args.steps, peers, folder) for batch_size in args.batch_sizes]
    facts = {
        "model": model.name,
        "device": str(model.device),
        "precision": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "steps": args.steps,
        "rows": rows,
    }
    print(json.dumps(facts) if args.json else _table(facts))
    return 0


def measure(
    model: DiffusersModel, images: Path, batch_size: int, steps: int, peers: list[Peer], folder: Path
) -> dict[str, Any]:
    """Steps per second of our loop and the bare one, by turns, half before and half after the peers; losses at the end."""
    config = TrainConfig(max_steps=steps + 20, batch_size=batch_size, template="subject")
    dataset = _dataset(model, images)
    vectors = {encoder: initial_vectors(tokens, 1) for encoder, tokens in model.token_embeddings(INIT_TEXT).items()}
    trainer = Trainer(model, dataset, Embedding(NAME, vectors), config)
    events = trainer.run()
    bare = bare_step(model, dataset, batch_size)
    times: list[tuple[float, float]] = []  # seconds a step, ours and bare

    def half() -> None:
        with model.training():
            _time(model, bare, 10)
            times.extend(
                (_time(model, lambda: next(events), steps // 10), _time(model, bare, steps // 10)) for _ in range(5)
            )

    _time(model, lambda: next(events), 10)
    half()
    results = {
        peer.name: peer.train(folder, images, model.default_size_px, batch_size, trainer.step + steps // 2, INIT_TEXT)
        for peer in peers
    }
    half()
    events.close()
    ours = 1 / statistics.median(each[0] for each in times)
    row: dict[str, Any] = {
        "batch_size": batch_size,
        "ours": ours,
        "bare_loop": 1 / statistics.median(each[1] for each in times),
        "ours_to_bare_loop": statistics.median(bare / own for own, bare in times),
    }
    learned = {"init_text": vectors, "ours": trainer.embedding.vectors}
    for name, result in results.items():
        row[name] = result.steps_per_second
        row[f"ours_to_{name}"] = ours / result.steps_per_second
        learned[name] = result.embedding.vectors
    prompts = [f"a photo of {NAME}"] * len(dataset.items)
    row["loss"] = {name: deterministic_loss(model, dataset.items, prompts, {NAME: each}) for name, each in learned.items()}
    return row


def bare_step(model: DiffusersModel, dataset: Dataset, batch_size: int) -> Callable[[], None]:
    """Forward and backward of text encoder and U-Net on one batch, and nothing else."""
    batch = next(dataset.batches(batch_size))
    pad = {"padding": "max_length", "max_length": 77, "return_tensors": "pt"}
    ids = [each.tokenizer(list(batch.prompts), **pad).input_ids.to(model.device) for each in model.text_encoders]

    def step() -> None:
        hooks = [
            each.table.register_forward_hook(lambda module, inputs, embedded: embedded.detach().requires_grad_())
            for each in model.text_encoders
        ]
        states = [each.states(own) for each, own in zip(model.text_encoders, ids, strict=True)]
        for hook in hooks:
            hook.remove()
        cond = Conditioning(torch.cat([hidden for hidden, _ in states], -1), states[-1][1])
        prediction = model.predict(batch.latents, batch.timesteps, cond, batch.pictures)
        mse_loss(prediction.float(), batch.noise).backward()

    return step


def _time(model: DiffusersModel, step: Callable[[], object], count: int) -> float:
    """Seconds a step."""
    started = time.perf_counter()
    for _ in range(count):
        step()
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    elif model.device.type == "mps":
        torch.mps.synchronize()
    return (time.perf_counter() - started) / count


def _dataset(model: DiffusersModel, images: Path) -> Dataset:
    size = (model.default_size_px, model.default_size_px)
    return load_dataset(images, model, Frame(size), Prompter(NAME, load_template("subject")), seed=0)


def _peer(text: str) -> Peer:
    name, _, folder = text.partition("=")
    if name not in PEERS or not folder:
        message = f"--against {text}: expected PEER=DIR with PEER one of {', '.join(PEERS)}."
        raise ConfigError(message)
    return PEERS[name](Path(folder))


def _table(facts: dict[str, Any]) -> str:
    lines = [
        f"{facts['model']} on {facts['device']}, {facts['precision']}, {facts['threads']} threads, torch {facts['torch']}"
    ]
    for row in facts["rows"]:
        lines.append(f"batch {row['batch_size']}:")
        for key, value in row.items():
            if isinstance(value, float):
                unit = "x" if key.startswith("ours_to_") else " steps/s"
                lines.append(f"  {key.replace('_', ' '):<20} {value:8.2f}{unit}")
        lines += [f"  loss, {name.replace('_', ' '):<14} {loss:8.4f}" for name, loss in row["loss"].items()]
    return "\n".join(lines)
