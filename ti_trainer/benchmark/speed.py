"""Steps per second, time by part and memory of our training loop next to a bare loop and other trainers."""

from __future__ import annotations

import argparse
import datetime
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ti_trainer.benchmark import peers
from ti_trainer.benchmark.loops import PARTS
from ti_trainer.benchmark.race import TURNS, Setting, measure
from ti_trainer.data.images import Frame
from ti_trainer.data.loading import load_dataset
from ti_trainer.data.prompts import Prompter, load_template
from ti_trainer.errors import ConfigError
from ti_trainer.host import ModelOptions
from ti_trainer.hosts.diffusers import shapes
from ti_trainer.hosts.diffusers.host import StandaloneHost
from ti_trainer.hosts.diffusers.model import DiffusersModel
from ti_trainer.wording import counted
from ti_trainer.workbench.diagnosis import NAME

STEPS = 200


def measure_all(args: argparse.Namespace, against: Sequence[peers.Peer]) -> dict[str, Any]:
    """The figures for each batch size of the arguments of `bench`; ConfigError for values that cannot be measured."""
    steps = args.steps or STEPS
    for flag, value, least in (("--steps", steps, TURNS), *(("--batch-sizes", each, 1) for each in args.batch_sizes)):
        if value < least:
            message = f"{flag}: found {value}, expected at least {least}."
            raise ConfigError(message)
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
        "steps": steps,
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
            memory = model.fit_memory(batch_size * (size_px // 8) ** 2, mode=args.memory)
            setting = Setting(
                model,
                dataset,
                batch_size,
                steps,
                folder,
                args.images,
                size_px,
                known=not args.shape,
                compiled=replace(model) if args.compile else None,
            )
            facts["rows"].append({**measure(setting, against), "memory": memory})
    return facts


def check_peers(against: Sequence[peers.Peer], model: DiffusersModel) -> None:
    """ConfigError if a peer cannot train this model."""
    if against and len(model.text_encoders) > 1:
        message = f"--against: found {model.name}, which is {model.spec.family}; expected a model with one text encoder."
        raise ConfigError(message)
    for each in against:
        if each.full_shape_only and model.spec.family != "SD 1.x":
            message = (
                f"--against {each.name}: it supports SD 1.x only, and {model.name} is {model.spec.family}: "
                "pass --shape sd15, or an SD 1.x checkpoint."
            )
            raise ConfigError(message)


def _model(args: argparse.Namespace) -> DiffusersModel:
    if args.shape:
        return shapes.random_model(args.shape, args.device, args.precision)
    precision = "fp32" if args.against and args.precision == "auto" and args.device in ("cpu", "mps") else args.precision
    return StandaloneHost(args.model, args.device).open_model(ModelOptions(precision))


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"


def table(facts: dict[str, Any]) -> str:
    """The figures as a table."""
    lines = [
        f"{facts['model']} at {facts['size']} px on {facts['device']}, {facts['precision']}, "
        f"{counted(facts['threads'], 'thread')}, "
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
    """The row of a trainer, or the header for an empty name. `ours then` is our speed in the same turns."""
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
