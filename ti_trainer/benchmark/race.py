"""Our loop, a bare loop and other trainers, measured in turns so that other load affects all of them alike."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ti_trainer.benchmark import peer_driver, peers
from ti_trainer.benchmark.loops import (
    bare_step,
    new_trainer,
    peak_memory,
    time_by_part,
    turn,
)
from ti_trainer.data.dataset import Dataset
from ti_trainer.errors import ConfigError
from ti_trainer.hosts.diffusers.model import DiffusersModel
from ti_trainer.model import Vectors
from ti_trainer.offload.plan import GIB
from ti_trainer.training.evaluation import validation_loss
from ti_trainer.training.events import Event, MemoryReduced
from ti_trainer.training.trainer import Trainer
from ti_trainer.workbench.diagnosis import INIT_TEXT, NAME, first_vectors

log = logging.getLogger(__name__)
TURNS = 10  # of each trainer
Runner = Callable[[int], tuple[float, float]]  # runs a number of steps; returns wall and CPU seconds per step


@dataclass(frozen=True)
class Setting:
    """What all are measured with; the loss is measured if the weights are `known`. `folder` has the model for peers."""

    model: DiffusersModel
    dataset: Dataset
    batch_size: int
    steps: int
    folder: Path
    images: Path
    size_px: int
    known: bool
    compiled: DiffusersModel | None = None  # the same model, to be compiled

    @property
    def warm_up(self) -> int:
        """Steps that are not measured."""
        return max(2, self.steps // 20)

    def task(self) -> peers.Task:
        """The setting for another program."""
        model = self.model
        precision = str(model.dtype).removeprefix("torch.")
        return peers.Task(
            self.folder,
            self.images,
            self.size_px,
            self.batch_size,
            precision,
            model.device.type,
            self.warm_up,
            self.steps,
            INIT_TEXT,
        )


@dataclass
class Times:
    """Wall and CPU seconds per step of each trainer, by turn."""

    wall: dict[str, list[float]] = field(default_factory=dict)
    cpu: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, seconds: tuple[float, float]) -> None:
        """Add a turn."""
        for times, each in zip((self.wall, self.cpu), seconds, strict=True):
            times.setdefault(name, []).append(each)


def measure(setting: Setting, against: Sequence[peers.Peer]) -> dict[str, Any]:
    """All figures for one batch size: ours next to the bare loop, and next to each peer, one after another."""
    row: dict[str, Any] = {"batch_size": setting.batch_size, "ours_to": {}, "ours_beside": {}, "peak_memory_gib": {}}
    learned: dict[str, Vectors] = {"init_text": first_vectors(setting.model)}
    _measure_ourselves(setting, row)
    series = [_series(setting, peer, row, learned) for peer in (against or (None,))]
    together = Times()
    for each in series:
        for name, times in each.wall.items():
            together.wall.setdefault(name, []).extend(times)
            together.cpu.setdefault(name, []).extend(each.cpu[name])
    row["steps_per_second"] = {name: 1 / statistics.median(times) for name, times in together.wall.items()}
    row["seconds_a_step"] = together.wall
    row["ours_beside"]["bare_loop"] = row["steps_per_second"]["ours"]
    row["ours_to"]["bare_loop"] = _ratio(together, "bare_loop", setting.model.device)
    if setting.compiled is not None:
        for ours, other in (("ours", "compiled"), ("compiled", "bare_compiled")):
            row["ours_beside"][other] = row["steps_per_second"][ours]
            row["ours_to"][other] = _ratio(together, other, setting.model.device, ours)
        setting.compiled.use_all_memory()
    if setting.known:
        items = setting.dataset.items
        prompts = [f"a photo of {NAME}"] * len(items)
        row["loss"] = {name: validation_loss(setting.model, items, prompts, {NAME: each}) for name, each in learned.items()}
    return row


def _events(trainer: Trainer) -> Generator[Event, None, None]:
    """The trainer's events, as a generator that can be closed early."""
    yield from trainer.run()


def _measure_ourselves(setting: Setting, row: dict[str, Any]) -> None:
    """Memory and time by part, which are measured separately, since measuring them takes time."""
    count = max(5, min(20, setting.steps // 2))
    events = _events(new_trainer(setting.model, setting.dataset, setting.batch_size, 3 * count))
    peak = peak_memory(lambda: next(events), setting.warm_up)
    row["milliseconds_by_part"] = time_by_part(setting.model, lambda: next(events), count)
    events.close()
    _note_memory(row, "ours", peak)


def _series(setting: Setting, peer: peers.Peer | None, row: dict[str, Any], learned: dict[str, Vectors]) -> Times:
    """Run ours, the bare loop and a peer in turns; adds the peer's figures to the row."""
    model, turns, times = setting.model, _turns(setting.steps), Times()
    trainer = new_trainer(model, setting.dataset, setting.batch_size, setting.warm_up + setting.steps)
    events, bare = _events(trainer), bare_step(model, setting.dataset, setting.batch_size)
    runners: dict[str, Runner] = {
        "ours": lambda steps: turn(lambda: next(events), steps),
        "bare_loop": lambda steps: turn(bare, steps),
    }
    runners["ours"](setting.warm_up)
    if setting.compiled is not None:
        runners |= _compiled(setting, setting.compiled, row)
    with model.training():
        runners["bare_loop"](2)
        if peer is None:
            _take_turns(runners, turns, times)
        else:
            with peers.running(peer, setting.task()) as running:
                _take_turns({**runners, peer.name: running.turn}, turns, times)
                if (found := running.finish()) is not None:
                    learned[peer.name] = found.vectors
                _note_memory(row, peer.name, running.memory)
            row["ours_to"][peer.name] = _ratio(times, peer.name, model.device)
            row["ours_beside"][peer.name] = 1 / statistics.median(times.wall["ours"])
    events.close()
    learned["ours"] = trainer.embedding.vectors
    return times


def _compiled(setting: Setting, model: DiffusersModel, row: dict[str, Any]) -> dict[str, Runner]:
    """Our loop and the bare one with the network compiled, warmed up; adds the seconds of the first time to the row.

    ConfigError if it cannot be compiled here.
    """
    steps = setting.warm_up + setting.steps
    words = "" if "compile_seconds" in row else model.compile("on", steps, 1, lambda: None)
    trainer = new_trainer(model, setting.dataset, setting.batch_size, steps)
    events, bare = _events(trainer), bare_step(model, setting.dataset, setting.batch_size)
    log.info("Compiling: a minute or more")
    begun = time.perf_counter()
    while trainer.step < setting.warm_up:
        if isinstance(event := next(events), MemoryReduced):
            words = event.message
    with model.training():
        bare()
    peer_driver.synchronize()
    if model.memory.compiled is None:
        message = f"bench --compile: expected a network that can be compiled. {words}"
        raise ConfigError(message)
    row.setdefault("compile_seconds", time.perf_counter() - begun)
    return {
        "compiled": lambda steps: turn(lambda: next(events), steps),
        "bare_compiled": lambda steps: turn(bare, steps),
    }


def _turns(steps: int) -> list[int]:
    """Steps of each of TURNS."""
    return [steps // TURNS + (number < steps % TURNS) for number in range(TURNS)]


def _take_turns(runners: dict[str, Runner], turns: Sequence[int], times: Times) -> None:
    """Run the turns; each starts with another runner, so that their order varies."""
    names = list(runners)
    for number, steps in enumerate(turns):
        log.info("%s: turn %d of %d", ", ".join(names).replace("_", " "), number + 1, len(turns))
        first = number % len(names)
        for name in names[first:] + names[:first]:
            times.add(name, runners[name](steps))


def _ratio(times: Times, other: str, device: torch.device, ours: str = "ours") -> dict[str, float]:
    """Ratio of speeds, ours to the other: median and quartiles over the turns; on a CPU also by CPU time."""
    each = [theirs / own for own, theirs in zip(times.wall[ours], times.wall[other], strict=True)]
    low, median, high = statistics.quantiles(each, n=4)
    ratio = {"median": median, "lower_quartile": low, "upper_quartile": high}
    if device.type == "cpu":
        ratio["by_cpu_time"] = statistics.median(
            theirs / own for own, theirs in zip(times.cpu[ours], times.cpu[other], strict=True)
        )
    return ratio


def _note_memory(row: dict[str, Any], name: str, peak: tuple[int, str] | None) -> None:
    if peak is not None:
        row["peak_memory_gib"][name] = peak[0] / GIB
        row["memory_is_of"] = peak[1]
