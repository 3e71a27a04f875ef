"""What a comparison compares: copies of runs, and embeddings of the embeddings folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ti_trainer import formats
from ti_trainer.embedding import Embedding
from ti_trainer.errors import ConfigError
from ti_trainer.formats import embeddings_dir
from ti_trainer.prompts import NO_TEXT
from ti_trainer.runs.run_folder import Run

AVERAGE = ", moving average"
SHOWN = 4  # copies of a run, unless others are chosen


@dataclass(frozen=True)
class Candidate:
    """One embedding of a comparison, with its negative, if there is one.

    `run` and `copy`, one of `copies_of(run)`, say where it comes from, unless it is in the embeddings folder.
    """

    label: str
    embedding: Embedding
    file: Path
    negative: Embedding | None = None
    run: Run | None = None
    copy: str = ""
    validation_loss: float | None = None

    @property
    def init_text(self) -> str:
        """The text that it was created from; "" if that is not known or describes nothing."""
        text = self.embedding.info.get("init_text")
        return text if isinstance(text, str) and text != NO_TEXT else ""


def copies_of(run: Run) -> dict[str, Path]:
    """The run's copies by label, the last step first; those of the moving average have AVERAGE in their labels."""
    live = [(step, "", path) for step, path in run.copies()]
    averaged = [(step, AVERAGE, path) for step, path in run.copies(averaged=True)]
    return {f"{step}{what}": path for step, what, path in sorted(live + averaged, key=lambda each: (-each[0], each[1]))}


def best_of(run: Run) -> str:
    """The copy with the lowest validation loss; "" if there is none."""
    losses = dict(run.validation_losses())
    return str(min((step for step, _ in run.copies() if step in losses), key=lambda step: losses[step], default=""))


def suggested(run: Run, most: int = SHOWN) -> list[str]:
    """The copies to compare unless others are chosen: the last, the first, evenly spaced ones between, and the best."""
    steps = [step for step, _ in run.copies()]
    best = best_of(run)
    count = min(most, len(steps))
    chosen = {str(steps[number * (len(steps) - 1) // max(1, count - 1)]) for number in range(count)}
    if best and best not in chosen and len(chosen) > 2:
        ends = {str(steps[0]), str(steps[-1])}
        chosen.remove(min(chosen - ends, key=lambda each: abs(int(each) - int(best))))
    return [each for each in copies_of(run) if each in chosen | {best}]


def of_run(run: Run, copies: Sequence[str], *, with_id: bool = False) -> list[Candidate]:
    """Copies of a run by their labels; ConfigError for one that does not exist."""
    settings, have, losses = run.settings(), copies_of(run), dict(run.validation_losses())
    if not settings:
        message = f"The run {run.id} cannot be read: {run.damage or 'settings.json is empty'}."
        raise ConfigError(message)
    found = []
    for copy in copies:
        if copy not in have:
            there = f"it has {', '.join(have)}" if have else "it has saved none"
            message = f"Copies: found {copy}, which the run {run.id} does not have ({there})."
            raise ConfigError(message, "copies")
        path = have[copy]
        negative = run.negative_of(path)
        label = f"{run.id if with_id else settings.get('name')}, step {copy}"
        # Validation losses are those of the trained vectors, not of their average.
        loss = losses.get(int(copy)) if copy.isdecimal() else None
        found.append(Candidate(label, formats.read(path), path, _read(negative), run, copy, loss))
    return found


def of_folder(folder: Path, name: str) -> Candidate:
    """An embedding of the embeddings folder, with its negative; ConfigError if there is none with this name."""
    embedding, path = embeddings_dir.load(folder, name)
    negative = embeddings_dir.find_negative(folder, name)
    return Candidate(f"{name}, step {embedding.step}", embedding, path, _read(negative))


def of_file(path: Path) -> Candidate:
    """An embedding of any file."""
    embedding = formats.read(path)
    return Candidate(f"{path.stem}, step {embedding.step}", embedding, path, formats.read_negative(path))


def _read(path: Path | None) -> Embedding | None:
    return None if path is None else formats.read(path)
