"""Detect that an embedding file was changed since a run last wrote it, and back up such a file before overwriting it."""

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

Loaded = Sequence[tuple[Embedding, Path]]  # the embedding and, with DreamArtist, its negative, with their files
BACKUPS = "replaced"  # the folder within a run folder for files that the run overwrote


def digest(vectors: Mapping[str, Tensor]) -> str:
    """A hash of an embedding's vectors (V, D) by text encoder; the same for every file format."""
    sha256 = hashlib.sha256()
    for encoder, each in sorted(vectors.items()):
        sha256.update(f"{encoder} {tuple(each.shape)}".encode())
        sha256.update(each.detach().cpu().float().contiguous().numpy().tobytes())
    return sha256.hexdigest()


def digests(embeddings: Sequence[Embedding]) -> dict[str, str]:
    """The digests of several embeddings, by name."""
    return {each.name: digest(each.vectors) for each in embeddings}


def check_unchanged(run: Run, state: TrainState, loaded: Loaded) -> None:
    """ConfigError if a file holds neither the vectors that the run last recorded, nor those of its saved state.

    The state is saved before the files are written, so a crash in between does not count as a change.
    """
    for embedding, file in _changed(run, state, loaded):
        if embedding.name in _recorded(run):
            raise ConfigError(_refusal(embedding, file, state.step), "overwrite")


def keep_changed(run: Run, state: TrainState, loaded: Loaded, warn: Callable[[str], None]) -> None:
    """Back up such files and warn, where the run continues in spite of the change."""
    for _, file in _changed(run, state, loaded):
        warn(
            f"{file.name} was changed since this run last wrote it. The run continues from its own state of step "
            f"{state.step}; the file was copied to {back_up(file, run)}."
        )


def _changed(run: Run, state: TrainState, loaded: Loaded) -> list[tuple[Embedding, Path]]:
    recorded = _recorded(run)
    return [
        (embedding, file)
        for kind, (embedding, file) in zip(("", NEGATIVE), loaded, strict=False)
        if file.exists()  # a negative that was read from DreamArtist's own file has no file yet
        and digest(embedding.vectors) not in {recorded.get(embedding.name), *_digests_in(state, kind, embedding)}
    ]


def _recorded(run: Run) -> dict[str, str]:
    recorded = run.settings().get("embedding_files")
    return recorded if isinstance(recorded, dict) else {}


def back_up(file: Path, run: Run) -> Path:
    """Copy a file that is about to be overwritten into the run folder, where no program looks for embeddings."""
    folder = run.path / BACKUPS
    folder.mkdir(exist_ok=True)
    number, copy = 1, folder / file.name
    while copy.exists():
        number += 1
        copy = folder / f"{file.stem}-{number}{file.suffix}"
    shutil.copy2(file, copy)
    return copy


def is_unchanged(file: Path, expected: str | None) -> bool:
    """Whether overwriting the file loses nothing: it does not exist, or its digest is the expected one."""
    if not file.exists():
        return True
    try:
        return digest(formats.read(file).vectors) == expected
    except (TITrainerError, OSError):
        return False


def _digests_in(state: TrainState, kind: str, embedding: Embedding) -> set[str]:
    """Digests of the vectors of every trial in a saved state, and of the best."""
    keys = [(state.vectors, prefix(number) + kind) for number in range(1, state.num_trials + 1)]
    keys += [] if state.best is None else [(dict(state.best.vectors), kind)]
    return {
        digest({encoder: vectors[key + encoder] for encoder in embedding.vectors})
        for vectors, key in keys
        if all(key + encoder in vectors for encoder in embedding.vectors)
    }


def _refusal(embedding: Embedding, file: Path, step: int) -> str:
    what = (
        f"{embedding.name} has been trained to step {embedding.step} since"
        if embedding.step > step
        else f"{embedding.name} has been created again or replaced since: {file} is at step {embedding.step}"
    )
    return (
        f"{what}. This run is at step {step} and would overwrite it. Start a new run to train the file as it is now, or "
        "continue this run and overwrite the file; a copy of it is kept in the run folder."
    )
