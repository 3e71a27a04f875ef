"""The Runs panel: the previews of several runs as a table, with a row for each run and a column for each step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape

from ti_trainer.runs.run_folder import Run
from ti_trainer.ui.thumbnails import thumbnail_uri

MAX_COLUMNS = 8
CELL_PX = 264


def table(runs: Mapping[str, Run]) -> str:
    """Render the previews of these runs, by title; "" unless there are at least two runs with a preview."""
    previews = {title: found for title, run in runs.items() if (found := dict(run.previews()))}
    if len(previews) < 2:
        return ""
    steps = columns([list(each) for each in previews.values()])
    head = "".join(f"<th>Step {step}</th>" for step in steps)
    rows = "".join(
        f"<tr><th>{escape(title)}</th>"
        + "".join(
            f'<td><img src="{thumbnail_uri(found[step], CELL_PX)}" alt="{escape(title)}, step {step}"></td>'
            if step in found
            else "<td>–</td>"
            for step in steps
        )
        + "</tr>"
        for title, found in previews.items()
    )
    return f'<div class="ti-compared"><table><tr><th></th>{head}</tr>{rows}</table></div>'


def columns(steps_of_runs: Sequence[Sequence[int]], most: int = MAX_COLUMNS) -> list[int]:
    """The steps to show: all if they are few; else the first, the last, and evenly spaced ones that most runs have."""
    counts = Counter(step for steps in steps_of_runs for step in set(steps))
    ends = {min(counts), max(counts)}
    candidates = sorted(counts)
    for shared in range(len(steps_of_runs), 0, -1):
        candidates = sorted(ends | {step for step, count in counts.items() if count >= shared})
        if len(candidates) >= most:
            break
    if len(candidates) <= most:
        return candidates
    return [candidates[number * (len(candidates) - 1) // (most - 1)] for number in range(most)]
