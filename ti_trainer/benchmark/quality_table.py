"""Summaries of the quality benchmark: means, and paired differences to the first variant, with standard errors."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

INIT_TEXT = "init text"  # the variant without training
Record = dict[str, Any]  # "variant", "options", the fields of a Cell, "version" and "result"
SHOWN = {  # measure -> heading of its column, decimal places; shares are percentages, without any
    "loss": ("loss", 4),
    "gain_over_init_text": ("gain over init text", 0),
    "gain_over_no_word": ("gain over no word", 0),
    "colour_distance": ("colour distance", 3),
    "shape": ("shape", 0),
    "own_texture": ("own texture", 0),
    "place": ("place", 0),
    "background": ("background", 0),
    "colour": ("colour override", 0),
    "texture": ("texture override", 0),
    "norm": ("norm", 1),
}
Summary = dict[str, dict[str, dict[str, float]]]  # variant -> measure -> "mean", "pairs" and, of several, "se"


def summary(records: Sequence[Record]) -> dict[str, Summary]:
    """`means` of each variant, and `differences` to the first variant over the cells that both have."""
    by_variant: dict[str, list[Record]] = {}
    for each in records:
        by_variant.setdefault(each["variant"], []).append(each)
    means = {name: _of_pairs([(_pair(each), each["result"]) for each in those]) for name, those in by_variant.items()}
    trained = [name for name in by_variant if name != INIT_TEXT]
    base = {_cell(each): each["result"] for each in by_variant.get(trained[0], [])} if trained else {}
    differences = {}
    for name in trained[1:]:
        both = [(_pair(each), each["result"], base[_cell(each)]) for each in by_variant[name] if _cell(each) in base]
        if both:
            differences[name] = _of_pairs([(pair, _difference(own, first)) for pair, own, first in both])
    return {"means": means, "differences": differences}


def table(facts: Mapping[str, Summary]) -> str:
    """The summary as text; +- is the standard error over pairs of concept and seed."""
    lines = []
    for title, part in (("Means", facts["means"]), ("Paired differences to the first variant", facts["differences"])):
        if part:
            lines += [title, *_rows(part, signed=part is facts["differences"]), ""]
    return "\n".join(lines)


def _rows(part: Summary, *, signed: bool) -> list[str]:
    rows = [["", "pairs", *(heading for heading, _ in SHOWN.values())]]
    for name, measures in part.items():
        count = int(next(iter(measures.values()))["pairs"])
        rows.append([name, str(count), *(_text(measures[key], places, signed) for key, (_, places) in SHOWN.items())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _text(value: Mapping[str, float], places: int, signed: bool) -> str:
    scale, unit = (1, "") if places else (100, "%")
    sign = "+" if signed else ""
    error = f" +- {scale * value['se']:.{places}f}" if "se" in value else ""
    return f"{scale * value['mean']:{sign}.{places}f}{error}{unit}"


def _difference(own: Mapping[str, float], first: Mapping[str, float]) -> dict[str, float]:
    return {key: value - first[key] for key, value in own.items() if key in first}


def _of_pairs(values: Sequence[tuple[tuple[int, int], Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Mean and standard error over pairs, of the measures that all have.

    Several cells of a pair are averaged first, since they are not independent.
    """
    pairs: dict[tuple[int, int], list[Mapping[str, float]]] = {}
    for pair, measures in values:
        pairs.setdefault(pair, []).append(measures)
    found = {}
    for key in (key for key in values[0][1] if all(key in measures for _, measures in values)):
        means = [statistics.mean(each[key] for each in those) for those in pairs.values()]
        found[key] = {**mean_and_error(means), "pairs": float(len(means))}
    return found


def mean_and_error(values: Sequence[float]) -> dict[str, float]:
    """The "mean" and, of several values, its standard error "se"."""
    found = {"mean": statistics.mean(values)}
    if len(values) > 1:
        found["se"] = statistics.stdev(values) / math.sqrt(len(values))
    return found


def _pair(record: Record) -> tuple[int, int]:
    return record["concept"], record["seed"]


def _cell(record: Record) -> tuple[Any, ...]:
    return tuple(record[key] for key in ("concept", "seed", "images", "captions", "vectors", "steps"))
