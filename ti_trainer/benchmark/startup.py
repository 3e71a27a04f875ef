"""CPU time of whole commands, from the start of Python to its end, and of other trainers, in turn."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ti_trainer.benchmark import peers
from ti_trainer.errors import ConfigError, TITrainerError
from ti_trainer.wording import counted

STEPS, TURNS = 300, 3
NAME, INIT_TEXT = "bench", "star"
USAGE_ERROR = "usage error"
ROOT = str(Path(__file__).parents[2])  # where Python finds this package in another folder


def measure(images: Path, steps: int, against: Sequence[peers.Peer], turns: int = TURNS) -> dict[str, Any]:
    """CPU seconds (user and system) of each command in each turn, and the ratio of each peer to `create and train`.

    All train one vector on the embedded model with batch size 1 on the CPU. ConfigError where CPU time cannot be measured.
    """
    if not hasattr(os, "wait4"):
        message = "--startup: the CPU time of a process cannot be measured on this system; expected Linux or macOS."
        raise ConfigError(message)
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        root, images = Path(name), images.resolve()
        cpu_seconds(_ours(["create", NAME, "--device", "cpu"]), root, _environment())
        task = peers.Task(root / "model", images, 64, 1, "float32", "cpu", steps, 0, INIT_TEXT)
        if against:
            _save_model(task.model)
        for turn in range(turns):
            for what, arguments in commands(root / "embeddings" / f"{NAME}.safetensors", images, steps).items():
                work = root / f"{turn} {what}"
                work.mkdir()
                if arguments[0] == "train" and "--init-text" not in arguments:
                    shutil.copytree(root / "embeddings", work / "embeddings")
                found = cpu_seconds(_ours(arguments), work, _environment(), 2 if what == USAGE_ERROR else 0)
                seconds.setdefault(what, []).append(found)
            for peer in against:
                work = root / f"{turn} {peer.name}"
                work.mkdir()
                found = cpu_seconds(peers.command_of(peer, task, work), work, peers.environment_of(task))
                seconds.setdefault(peer.name, []).append(found)
    ours = statistics.median(seconds[f"create and train {steps} steps"])
    ratios = {peer.name: statistics.median(seconds[peer.name]) / ours for peer in against}
    return {"steps": steps, "threads": os.environ.get("OMP_NUM_THREADS", "all"), "cpu_seconds": seconds, "ratios": ratios}


def commands(embedding: Path, images: Path, steps: int) -> dict[str, list[object]]:
    """What is measured, by name: the arguments of ti_trainer."""
    start = ["--init-text", INIT_TEXT, "--num-vectors", 1]
    train = ["train", NAME, "--images", images, "--device", "cpu"]
    return {
        "--help": ["--help"],
        "--version": ["--version"],
        USAGE_ERROR: ["train", "--no-such-option"],
        "info": ["info", embedding],
        "convert": ["convert", embedding, "converted.safetensors"],
        "create": ["create", NAME, *start, "--device", "cpu"],
        "train 1 step": [*train, "--max-steps", 1],
        f"train {steps} steps": [*train, "--max-steps", steps],
        f"create and train {steps} steps": [*train, *start, "--max-steps", steps],
    }


def cpu_seconds(command: Sequence[str], folder: Path, environment: Mapping[str, str], expected: int = 0) -> float:
    """User and system CPU seconds of a process and its children; TITrainerError if it ends with another exit code."""
    log = folder / "output.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != expected:
        last = log.read_text(encoding="utf-8", errors="replace").strip()[-1000:]
        message = f"{' '.join(command)} failed (exit code {process.returncode}): {last}"
        raise TITrainerError(message)
    return usage.ru_utime + usage.ru_stime


def table(facts: Mapping[str, Any]) -> str:
    """The figures as a table."""
    lines = [
        f"CPU seconds of whole commands, {counted(facts['threads'], 'thread')}",
        f"  {'':<30} {'median':>8} {'least':>8} {'most':>8}",
    ]
    for what, seconds in facts["cpu_seconds"].items():
        median, least, most = statistics.median(seconds), min(seconds), max(seconds)
        lines.append(f"  {what:<30} {median:>8.2f} {least:>8.2f} {most:>8.2f}")
    for peer, ratio in facts["ratios"].items():
        lines.append(f"{peer} takes {ratio:.2f} times the CPU time of create and train {facts['steps']} steps.")
    return "\n".join(lines)


def _ours(arguments: Sequence[object]) -> list[str]:
    return [sys.executable, "-m", "ti_trainer", *map(str, arguments)]


def _environment() -> dict[str, str]:
    paths = [ROOT, os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "CUDA_VISIBLE_DEVICES": ""}


def _save_model(folder: Path) -> None:
    """The embedded model in a form that other programs load."""
    from ti_trainer.hosts.diffusers import loading, shapes

    shapes.save(loading.load("embedded", "cpu"), folder)
