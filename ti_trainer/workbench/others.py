"""The embeddings of a folder to compare one with: those that have a text encoder of the same name and width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ti_trainer import formats
from ti_trainer.embedding import Embedding
from ti_trainer.errors import EmbeddingFormatError
from ti_trainer.formats import embeddings_dir
from ti_trainer.formats.embeddings_dir import IMAGES
from ti_trainer.formats.outline import HEADED, outline

MOST = 2000  # files: reading one takes about a millisecond


@dataclass(frozen=True)
class Others:
    """Embeddings by name; `left_out` files were not read, since there are too many."""

    embeddings: dict[str, Embedding]
    left_out: int = 0


def embeddings_beside(folder: Path, embedding: Embedding, file: Path | None = None, most: int = MOST) -> Others:
    """Read the embeddings of a folder that can be compared with this one, without its own `file`.

    Previews are left out; of too many files the oldest. Files that cannot be read are skipped: the library lists them.
    """
    files = embeddings_dir.embedding_files(folder)
    own = file.resolve() if file is not None else None
    names = {path.with_suffix("") for path in files if path.suffix.lower() not in IMAGES}
    files = [path for path in files if path.suffix.lower() not in IMAGES or path.with_suffix("") not in names]
    left_out = max(0, len(files) - most)
    if left_out:
        files = sorted(files, key=_time_of, reverse=True)[:most]
    found: dict[str, Embedding] = {}
    for path in sorted(files, key=embeddings_dir.rank):
        if path.stem in found or path.resolve() == own:
            continue
        try:
            if path.suffix.lower() == HEADED and not _alike(embedding.widths, outline(path).widths):
                continue
            other = formats.read(path)
        except (EmbeddingFormatError, OSError):
            continue
        if _alike(embedding.widths, other.widths):
            found[path.stem] = other
    return Others(found, left_out)


def _alike(widths: Mapping[str, int], others: Mapping[str, int]) -> bool:
    """Whether a text encoder is in both, with the same width."""
    return bool(set(widths.items()) & set(others.items()))


def _time_of(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
