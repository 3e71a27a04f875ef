"""The requests a running session accepts, and the result it returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from threading import Event as Flag

from ti_trainer.embedding import Embedding
from ti_trainer.runs.run_folder import Run
from ti_trainer.training.selection import TrialResult


@dataclass(frozen=True)
class Controls:
    """Requests to a running session, set from any thread: stop, save a copy now, generate a preview now."""

    stop: Flag = field(default_factory=Flag)
    copy: Flag = field(default_factory=Flag)
    preview: Flag = field(default_factory=Flag)


@dataclass(frozen=True)
class Result:
    """What a session produced: an embedding, of the best step where that is known, after `last_step` steps."""

    embedding: Embedding
    embedding_file: Path
    run: Run
    reason: str
    num_images: int
    skipped: tuple[tuple[Path, str], ...]
    negative_file: Path | None = None
    trials: tuple[TrialResult, ...] = ()  # empty for a run of one trial
    doubts: tuple[str, ...] = ()  # the warnings of `health`: signs that training may have diverged
    last_step: int = 0
    max_steps: int = 0
    verdict: str = ""  # at which step the embedding was the best, and why the run ended there
