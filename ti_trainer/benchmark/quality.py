"""The quality benchmark: what variants of a training learn, as paired differences over concepts and seeds.

A run is a cell of a grid, trained with the options of one variant. Its result is one line of JSON, so that a benchmark can
be run in parts and continued.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from ti_trainer import __version__
from ti_trainer.benchmark.quality_prompts import THINGS
from ti_trainer.benchmark.quality_run import Cell, Concept, measure_cell
from ti_trainer.benchmark.quality_table import INIT_TEXT, SHOWN, Record
from ti_trainer.config.training import TrainConfig
from ti_trainer.data.prompts import load_template
from ti_trainer.errors import ConfigError
from ti_trainer.hosts.diffusers.model import DiffusersModel
from ti_trainer.prompts import CHUNK
from ti_trainer.wording import counted

log = logging.getLogger(__name__)
Key = tuple[Any, ...]


@dataclass(frozen=True)
class Grid:
    """The cells of a benchmark: every combination."""

    concepts: Sequence[int] = tuple(range(len(THINGS)))
    seeds: Sequence[int] = (0, 1, 2)
    images: Sequence[int] = (1, 4, 8)
    captions: Sequence[bool] = (True, False)
    vectors: Sequence[int] = (1, 2, 8)
    steps: Sequence[int] = (300,)

    def cells(self) -> list[Cell]:
        """All cells; the seed changes slowest, so that a part of a benchmark covers all concepts."""
        return [
            Cell(concept, seed, images, captions, vectors, steps)
            for seed, steps, images, captions, vectors, concept in product(
                self.seeds, self.steps, self.images, self.captions, self.vectors, self.concepts
            )
        ]


def measure(
    model: DiffusersModel,
    grid: Grid,
    variants: Mapping[str, Mapping[str, Any]],
    results: Path,
    progress: Callable[[Record, int, int], None] = lambda record, done, total: None,
) -> list[Record]:
    """Run what `results` does not have yet, and append each run to it. The records of this grid and these variants."""
    configs = {name: TrainConfig.from_dict(options) for name, options in variants.items()}
    for config, steps in product(configs.values(), grid.steps):  # what cannot be trained is refused before anything is
        load_template(replace(config, max_steps=steps).template)
    done = {_key(record): record for record in read_records(results)}
    records: list[Record] = []
    concepts: dict[int, Concept] = {}
    planned = list(_planned(grid, variants))
    for number, record in enumerate(planned, 1):
        found = done.get(_key(record))
        if found is None:
            cell = Cell(**{name: record[name] for name in Cell.__dataclass_fields__})
            if cell.concept not in concepts:
                concepts[cell.concept] = Concept(model, cell.concept)
            learner = concepts[cell.concept]
            if record["variant"] == INIT_TEXT:
                result = learner.measure(learner.thing.shape, {})
            else:
                result = measure_cell(learner, cell, configs[record["variant"]])
            found = done[_key(record)] = {**record, "version": __version__, "result": result}
            _append(results, found)
            progress(found, number, len(planned))
        records.append({**found, "variant": record["variant"]})
    return records


def finished(grid: Grid, variants: Mapping[str, Mapping[str, Any]], results: Path) -> list[Record]:
    """The records of this grid and these variants that `results` has already."""
    done = {_key(record): record for record in read_records(results)}
    planned = [(record, done.get(_key(record))) for record in _planned(grid, variants)]
    return [{**record, **found, "variant": record["variant"]} for record, found in planned if found is not None]


def check(grid: Grid, results: Path) -> None:
    """ConfigError for a grid that cannot be run, and for results that cannot be written."""
    for what, values, low, high in (
        ("concepts", grid.concepts, 0, len(THINGS) - 1),
        ("seeds", grid.seeds, 0, 2**31),
        ("images", grid.images, 1, 1000),
        ("vectors", grid.vectors, 1, CHUNK),
        ("steps", grid.steps, 1, 1_000_000),
    ):
        if wrong := [each for each in values if not low <= each <= high]:
            message = f"Numbers of {what}: found {wrong[0]}, expected {low} to {high}."
            raise ConfigError(message)
    if results.is_dir() or not results.absolute().parent.is_dir():
        message = f"The results cannot be written to {results}: expected a file in a folder that exists."
        raise ConfigError(message)


def _planned(grid: Grid, variants: Mapping[str, Mapping[str, Any]]) -> Iterator[Record]:
    """The records to be made, without results: the init text of each concept, then all variants of each cell."""
    for number in grid.concepts:
        yield {"variant": INIT_TEXT, "options": {}, **asdict(Cell(number, 0, 0, True, 0, 0))}
    for cell in grid.cells():
        for name, options in variants.items():
            yield {"variant": name, "options": dict(options), **asdict(cell)}


def _key(record: Record) -> Key:
    """What makes a run: its options, not the name of the variant."""
    is_init = record["variant"] == INIT_TEXT
    options = json.dumps(record["options"], sort_keys=True)
    return (is_init, options, *(record[name] for name in Cell.__dataclass_fields__))


def _append(path: Path, record: Record) -> None:
    """Add a line; one that an interrupted run left incomplete is ended first."""
    with path.open("a+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        start = b"\n" if size and file.read(1) != b"\n" else b""
        file.write(start + json.dumps(record).encode() + b"\n")


def read_records(path: Path) -> list[Record]:
    """The finished runs in a file. Other lines, as an interrupted run may leave one, are skipped with a warning."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    records = [record for line in lines if (record := _record_in(line)) is not None]
    if skipped := len(lines) - len(records):
        log.warning("%s: %s without a whole result, not used.", path, counted(skipped, "line"))
    return records


def _record_in(line: str) -> Record | None:
    """The record of a line; None for anything else, as one that lacks a measure of today."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(result := found.get("result"), dict):
        return None
    is_whole = (
        {"variant", "options"} <= set(found)
        and all(isinstance(found.get(name), int) for name in Cell.__dataclass_fields__)
        and set(SHOWN) <= set(result)
        and all(isinstance(value, int | float) for value in result.values())
    )
    return found if is_whole else None
