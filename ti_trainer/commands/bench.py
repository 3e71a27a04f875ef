"""bench: steps per second, time by part and peak memory, beside a bare loop and other trainers, in turn in one run."""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch

from ti_trainer import tiny_model
from ti_trainer.benchmark import peers
from ti_trainer.benchmark.loops import NAME, PARTS
from ti_trainer.benchmark.race import TURNS, Setting, measure
from ti_trainer.commands.common import add_host_arguments, host_of
from ti_trainer.commands.terminal import number_of
from ti_trainer.data.images import Frame
from ti_trainer.data.loading import load_dataset
from ti_trainer.data.prompts import Prompter, load_template
from ti_trainer.errors import ConfigError
from ti_trainer.host import ModelOptions
from ti_trainer.hosts.diffusers import shapes
from ti_trainer.hosts.diffusers.host import StandaloneHost
from ti_trainer.hosts.diffusers.model import DiffusersModel
from ti_trainer.model import MemoryMode

HELP = "measure steps per second, time by part and memory, against a bare loop and, if you have them, other trainers"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what it takes."""
    known = " ".join(each if each == "webui" else f"{each}=DIR" for each in peers.PEERS)
    parser.add_argument(
        "--shape", choices=list(shapes.SHAPES), help="instead of --model: random weights in the full shape of a family"
    )
    parser.add_argument(
        "--size", type=number_of(int), metavar="PX", help="side of the images (default: what the model was made for)"
    )
    parser.add_argument(
        "--precision", choices=["auto", "fp32", "fp16", "bf16"], default="auto", help="of the U-Net (default: auto)"
    )
    parser.add_argument(
        "--steps", type=number_of(int), default=200, metavar="N", help="steps of each (default: %(default)s)"
    )
    parser.add_argument("--batch-sizes", type=number_of(int), nargs="+", default=[1, 4], metavar="B", help="(default: 1 4)")
    parser.add_argument("--images", type=Path, default=tiny_model.DEMO, metavar="DIR", help="(default: the demo's)")
    parser.add_argument(
        "--against",
        nargs="*",
        default=[],
        metavar="PEER",
        help=f"other trainers: {known}. webui is a loop as the WebUI runs it; DIR is a checkout",
    )
    parser.add_argument(
        "--peer-python", nargs="*", default=[], metavar="PEER=PYTHON", help="the Python that has a peer's packages"
    )
    parser.add_argument(
        "--memory", choices=get_args(MemoryMode), default="none", help="what gives way, as in train; in the bare loop, too"
    )
    parser.add_argument("--compile", action="store_true", help="also with the network compiled, beside the same without")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_host_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Measure and print a table or JSON."""
    _check(args)
    pythons = dict(_python(text) for text in args.peer_python)
    against = [peers.peer_of(text, pythons) for text in args.against]
    for each in against:
        each.script_path()
    model = _model(args)
    size_px = args.size or model.default_size_px
    check_peers(against, model)
    facts: dict[str, Any] = {
        "model": model.name,
        "size": size_px,
        "device": _device(model.device),
        "precision": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": datetime.datetime.now().astimezone().date().isoformat(),
        "steps": args.steps,
        "rows": [],
    }
    frame, prompter = Frame((size_px, size_px)), Prompter(NAME, load_template("subject"))
    dataset = load_dataset(args.images, model, frame, prompter)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        if against:
            own = Path(args.model) / "tokenizer"
            shapes.save(model, folder, own if own.is_dir() else shapes.TOKENIZER)
        for batch_size in args.batch_sizes:
            said = model.fit_memory(batch_size * (size_px // 8) ** 2, mode=args.memory)
            setting = Setting(
                model,
                dataset,
                batch_size,
                args.steps,
                folder,
                args.images,
                size_px,
                known=not args.shape,
                compiled=replace(model) if args.compile else None,
            )
            facts["rows"].append({**measure(setting, against), "memory": said})
    print(json.dumps(facts) if args.json else table(facts))
    return 0


def _check(args: argparse.Namespace) -> None:
    for flag, value, least in (("--steps", args.steps, TURNS), *(("--batch-sizes", each, 1) for each in args.batch_sizes)):
        if value < least:
            message = f"{flag}: found {value}, expected at least {least}."
            raise ConfigError(message)
    if args.size is not None and (args.size % 64 or not 64 <= args.size <= 4096):
        message = f"--size: found {args.size}, expected a multiple of 64 from 64 to 4096."
        raise ConfigError(message)
    if args.compile and args.memory != "none":
        message = f"--compile and --memory {args.memory}: what is compiled keeps all on the card; leave one of them out."
        raise ConfigError(message)
    if args.shape and args.model != StandaloneHost.model:
        message = f"--shape {args.shape} and --model {args.model}: a shape has weights of its own; leave one of them out."
        raise ConfigError(message)


def check_peers(against: Sequence[peers.Peer], model: DiffusersModel) -> None:
    """ConfigError if one of them cannot take this model."""
    if against and len(model.text_encoders) > 1:
        message = f"--against: found {model.name}, which is {model.spec.family}; expected a model with one text encoder."
        raise ConfigError(message)
    for each in against:
        if each.full_shape_only and model.spec.family != "SD 1.x":
            message = (
                f"--against {each.name}: it knows the full shape of SD 1.x only, and {model.name} is {model.spec.family}: "
                "take --shape sd15, or a checkpoint of SD 1.x."
            )
            raise ConfigError(message)


def _model(args: argparse.Namespace) -> DiffusersModel:
    if args.shape:
        return shapes.random_model(args.shape, args.device, args.precision)
    precision = "fp32" if args.against and args.precision == "auto" and args.device in ("cpu", "mps") else args.precision
    return host_of(args).open_model(ModelOptions(precision))


def _python(text: str) -> tuple[str, Path]:
    name, _, python = text.partition("=")
    if name not in peers.PEERS or not python:
        message = f"--peer-python {text}: expected PEER=PYTHON with PEER one of {', '.join(peers.PEERS)}."
        raise ConfigError(message)
    return name, Path(python)


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"


def table(facts: dict[str, Any]) -> str:
    """The same for people."""
    lines = [
        f"{facts['model']} at {facts['size']} px on {facts['device']}, {facts['precision']}, {facts['threads']} threads, "
        f"torch {facts['torch']}, {facts['date']}, {facts['steps']} steps of each"
    ]
    for row in facts["rows"]:
        lines += ["", f"batch {row['batch_size']}:", *(_line(row, name) for name in ("", *row["steps_per_second"]))]
        if row["memory"]:
            lines.append(f"  {row['memory']}")
        if "compile_seconds" in row:
            lines.append(f"  compiling took {row['compile_seconds']:.0f} s")
        parts = row["milliseconds_by_part"]
        shares = ", ".join(
            f"{part.replace('_', ' ')} {parts[part]:.1f} ({parts[part] / parts['step']:.0%})" for part in PARTS
        )
        lines.append(f"  ours by part, ms: {shares}")
    return "\n".join(lines)


def _line(row: dict[str, Any], name: str) -> str:
    """A contestant's, and for no name the head. `ours then` is beside it: what else the machine does comes and goes."""
    if not name:
        memory = f"peak GB ({row['memory_is_of']})" if "memory_is_of" in row else ""
        cells = [
            "",
            "steps/s",
            "ours then",
            "ours is",
            "(quartiles)",
            "by CPU time",
            memory,
            "loss" if "loss" in row else "",
        ]
    else:
        ratio, memory, loss = row["ours_to"].get(name), row["peak_memory_gib"].get(name), row.get("loss", {}).get(name)
        cells = [name.replace("_", " "), f"{row['steps_per_second'][name]:.3f}", *[""] * 4]
        if ratio:
            quartiles = f"({ratio['lower_quartile']:.2f} to {ratio['upper_quartile']:.2f})"
            by_cpu = f"{ratio['by_cpu_time']:.2f} x" if "by_cpu_time" in ratio else ""
            cells[2:] = [f"{row['ours_beside'][name]:.3f}", f"{ratio['median']:.2f} x", quartiles, by_cpu]
        cells += ["" if memory is None else f"{memory:.2f}", "" if loss is None else f"{loss:.4f}"]
    first, *others = zip(cells, (13, 9, 10, 9, 15, 12, 14, 7), strict=True)
    return (f"  {first[0]:<{first[1]}}" + "".join(f"  {cell:>{width}}" for cell, width in others)).rstrip()
