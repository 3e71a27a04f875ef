"""What a training is asked for while it goes on, and what it gives back. Knows nothing of how it is made."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from threading import Event as Flag

from ti_trainer.embedding import Embedding
from ti_trainer.runs.run_folder import Run
from ti_trainer.training.selection import TrialResult


@dataclass(frozen=True)
class Controls:
    """What is asked of a run while it goes on, from any thread: to stop, to save a copy now, to draw a preview now."""

    stop: Flag = field(default_factory=Flag)
    copy: Flag = field(default_factory=Flag)
    preview: Flag = field(default_factory=Flag)


@dataclass(frozen=True)
class Result:
    """What a training left behind."""

    embedding: Embedding
    embedding_file: Path
    run: Run
    reason: str
    num_images: int
    skipped: tuple[tuple[Path, str], ...]
    negative_file: Path | None = None
    trials: tuple[TrialResult, ...] = ()  # where there is more than one
    doubts: tuple[str, ...] = ()  # signs that it may have gone wrong, which were warned of as they came
