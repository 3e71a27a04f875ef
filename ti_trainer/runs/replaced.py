"""Whether an embedding's file is still what a run wrote last, and what becomes of one that is not. Knows no host."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from ti_trainer import formats
from ti_trainer.embedding import Embedding
from ti_trainer.errors import ConfigError, TITrainerError
from ti_trainer.runs.run_folder import Run
from ti_trainer.training.state import TrainState, prefix
from ti_trainer.training.trainable_embedding import NEGATIVE

Loaded = Sequence[tuple[Embedding, Path]]  # the word and, with DreamArtist, its negative, with their files
ASIDE = "replaced"  # the folder of a run with files that it would have overwritten


def digest(vectors: Mapping[str, Tensor]) -> str:
    """Names what an embedding is, whatever its file's format."""
    found = hashlib.sha256()
    for encoder, each in sorted(vectors.items()):
        found.update(f"{encoder} {tuple(each.shape)}".encode())
        found.update(each.detach().cpu().float().contiguous().numpy().tobytes())
    return found.hexdigest()


def digests(embeddings: Sequence[Embedding]) -> dict[str, str]:
    """By name."""
    return {each.name: digest(each.vectors) for each in embeddings}


def check_unchanged(run: Run, state: TrainState, loaded: Loaded) -> None:
    """ConfigError if a file holds neither what the run noted last, nor the vectors of its state.

    Its state is saved before the files are written, so that a crash in between is no change. A run of an earlier version
    noted nothing: of it nobody knows.
    """
    for embedding, file in _changed(run, state, loaded):
        if embedding.name in _noted(run):
            raise ConfigError(_refusal(embedding, file, state.step), "overwrite")


def keep_changed(run: Run, state: TrainState, loaded: Loaded, warn: Callable[[str], None]) -> None:
    """Keep copies of such files, since the run goes on all the same, and say so."""
    for _, file in _changed(run, state, loaded):
        warn(
            f"{file.name} was changed since this run last wrote it. The run continues from its own state of step "
            f"{state.step}; the file was copied to {keep_aside(file, run)}."
        )


def _changed(run: Run, state: TrainState, loaded: Loaded) -> list[tuple[Embedding, Path]]:
    noted = _noted(run)
    return [
        (embedding, file)
        for kind, (embedding, file) in zip(("", NEGATIVE), loaded, strict=False)
        if file.exists()  # not so where its negative began as DreamArtist's own file
        and digest(embedding.vectors) not in {noted.get(embedding.name), *_digests_in(state, kind, embedding)}
    ]


def _noted(run: Run) -> dict[str, str]:
    noted = run.settings().get("embedding_files")
    return noted if isinstance(noted, dict) else {}


def keep_aside(file: Path, run: Run) -> Path:
    """Copy a file that is about to be overwritten into the run's folder, where no program looks for embeddings."""
    folder = run.path / ASIDE
    folder.mkdir(exist_ok=True)
    number, kept = 1, folder / file.name
    while kept.exists():
        number += 1
        kept = folder / f"{file.stem}-{number}{file.suffix}"
    shutil.copy2(file, kept)
    return kept


def holds(file: Path, expected: str | None) -> bool:
    """Whether overwriting the file loses nothing: it is not there, or holds what is expected."""
    if not file.exists():
        return True
    try:
        return digest(formats.read(file).vectors) == expected
    except (TITrainerError, OSError):
        return False


def _digests_in(state: TrainState, kind: str, embedding: Embedding) -> set[str]:
    """Of the vectors of all trials."""
    keys = [prefix(number) + kind for number in range(1, state.num_trials + 1)]
    trials = [{encoder: state.vectors.get(key + encoder) for encoder in embedding.vectors} for key in keys]
    return {digest(each) for each in trials if all(vectors is not None for vectors in each.values())}


def _refusal(embedding: Embedding, file: Path, step: int) -> str:
    what = (
        f"{embedding.name} has been trained to step {embedding.step} since"
        if embedding.step > step
        else f"{embedding.name} was created anew or replaced since: {file} is at step {embedding.step}"
    )
    return (
        f"{what}; this run is at step {step} and would overwrite it. Start a new run to train what the file holds, or "
        "continue this one and overwrite the file; a copy of it is kept in the run's folder."
    )
