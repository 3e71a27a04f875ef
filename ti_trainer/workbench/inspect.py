"""Look into an embedding: norms, nearest tokens of the vocabulary, nearest other embeddings, similarities of its vectors.

The nearest tokens are those of the WebUI's extension embedding-inspector: cosine similarity in float32 with every row of the
model's token embeddings; none is left out, special tokens neither.
Source: tkalayci71/embedding-inspector 511a478, scripts/embedding_inspector.py, `do_inspect`.

V vectors, D width of a text encoder's token embeddings, N tokens in the vocabulary, R rows of it at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ti_trainer.embedding import Embedding

if TYPE_CHECKING:
    from torch import Tensor

    from ti_trainer.model import DiffusionModel

Array = NDArray[np.float32]
EPS = 1e-6  # as in embedding-inspector: the similarity of a vector of zeros is 0
ROWS = 8192  # of the vocabulary at a time: a copy of SDXL's whole tables would take 400 MB
QUANTILES = (0.05, 0.5, 0.95)


@dataclass(frozen=True)
class Near:
    """A token, spelled as in the vocabulary, or a vector of another embedding; `number` is its id or its row."""

    name: str
    number: int
    similarity: float


@dataclass(frozen=True, eq=False)
class EncoderReport:
    """The vectors of one text encoder: norms (V,) and cosine similarities (V, V).

    With a model that has this text encoder, `vocabulary` are the norms of its tokens (N,), and `tokens` the nearest ones of
    each vector. `embeddings` are the nearest vectors of other embeddings, at most one of each.
    """

    encoder: str
    width: int
    norms: NDArray[np.float64]
    similarities: Array
    vocabulary: NDArray[np.float64] | None = None
    tokens: Sequence[Sequence[Near]] = ()
    embeddings: Sequence[Sequence[Near]] = ()

    def rank_of(self, norm: float) -> float | None:
        """The share of the vocabulary with smaller norms, 0 to 1; None without a model."""
        return None if self.vocabulary is None else float((self.vocabulary < norm).mean())


def inspect(
    embedding: Embedding,
    model: DiffusionModel | None = None,
    others: Mapping[str, Embedding] | None = None,
    nearest: int = 5,
) -> tuple[EncoderReport, ...]:
    """A report for each text encoder of the embedding, with up to `nearest` tokens and other embeddings for each vector."""
    tables = model.token_tables() if model is not None and nearest > 0 else {}
    reports = []
    for encoder, vectors in embedding.arrays.items():
        unit, norms = normalized(vectors)
        tokens: tuple[tuple[Near, ...], ...] = ()
        vocabulary, table = None, tables.get(encoder)
        if model is not None and table is not None and table.shape[1] == vectors.shape[1]:
            ids, scores, lengths = nearest_tokens(table, unit, nearest)
            vocabulary = lengths.astype(np.float64)
            tokens = tuple(
                tuple(
                    Near(model.token_piece(int(token)), int(token), float(score)) for token, score in zip(*row, strict=True)
                )
                for row in zip(ids, scores, strict=True)
            )
        alike = {name: each.arrays[encoder] for name, each in (others or {}).items() if encoder in each.widths}
        alike = {name: each for name, each in alike.items() if each.shape[1] == vectors.shape[1]}
        near = nearest_embeddings(unit, alike, nearest) if nearest > 0 else ()
        reports.append(
            EncoderReport(encoder, vectors.shape[1], norms, unit @ unit.T, vocabulary, tokens, near)  # (V, V)
        )
    return tuple(reports)


def normalized(vectors: Array) -> tuple[Array, NDArray[np.float64]]:
    """(V, D) -> the vectors of length 1 (V, D), zeros as they are, and their norms (V,), which cannot overflow."""
    exact = vectors.astype(np.float64)
    norms = np.linalg.norm(exact, axis=1)
    return (exact / np.maximum(norms, EPS)[:, None]).astype(np.float32), norms


def nearest_tokens(table: Tensor, unit: Array, count: int) -> tuple[NDArray[np.int64], Array, Array]:
    """For each vector of length 1 (V, D) the ids (V, count) of the tokens nearest to it, nearest first, and similarities.

    Also returns the norms of all tokens (N,). `table` (N, D) may be on any device and of any floating dtype.
    """
    import torch

    norms, scores, ids = [], [], []
    vectors = torch.from_numpy(unit)
    for first, rows in _blocks(table):
        lengths = rows.norm(dim=1)  # (R,)
        best = ((vectors @ rows.T) / lengths.clamp_min(EPS)).topk(min(count, len(rows)), dim=1)  # (V, count)
        norms.append(lengths)
        scores.append(best.values)
        ids.append(best.indices + first)
    nearest = torch.cat(scores, 1).topk(min(count, len(table)), dim=1)  # (V, count)
    return torch.cat(ids, 1).gather(1, nearest.indices).numpy(), nearest.values.numpy(), torch.cat(norms).numpy()


def _blocks(table: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The table in parts: the number of the first row, and (R, D) in float32 on the CPU, valid until the next part."""
    import torch

    table = table.detach()
    is_ready = table.dtype == torch.float32 and table.device.type == "cpu"
    room = None if is_ready else torch.empty(min(ROWS, len(table)), table.shape[1])  # used again: new memory costs time
    for first in range(0, len(table), ROWS):
        rows = table[first : first + ROWS]
        yield first, rows if room is None else room[: len(rows)].copy_(rows)


def nearest_embeddings(unit: Array, others: Mapping[str, Array], count: int) -> tuple[tuple[Near, ...], ...]:
    """For each vector of length 1 (V, D) the embeddings with the most similar vectors, each with that vector's number."""
    if not others:
        return tuple(() for _ in unit)
    names = list(others)
    best = np.empty((len(names), len(unit)), np.float32)  # (embeddings, V)
    rows = np.empty(best.shape, np.int64)
    for place, name in enumerate(names):
        scores = normalized(others[name])[0] @ unit.T  # (vectors of the other, V)
        rows[place] = scores.argmax(0)
        best[place] = scores.max(0)
    order = np.argsort(-best, axis=0, kind="stable")[:count]  # (count, V)
    return tuple(
        tuple(Near(names[place], int(rows[place, column]), float(best[place, column])) for place in order[:, column])
        for column in range(len(unit))
    )


def shown_token(piece: str) -> str:
    """A token's text for users, with an ellipsis if longer words continue it: `cat` and `cat…` are two tokens."""
    if piece.startswith("<|") and piece.endswith("|>"):
        return piece
    text = bytes(_BYTES.get(each, 0x3F) for each in piece.removesuffix("</w>")).decode("utf-8", "backslashreplace")
    return text if piece.endswith("</w>") or not piece else f"{text}…"


def _bytes_by_character() -> dict[str, int]:
    """GPT-2's characters for bytes, which CLIP's vocabulary uses: printable ones for themselves, others from 256 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [each for each in range(256) if each not in plain]
    return {chr(each): each for each in plain} | {chr(256 + place): each for place, each in enumerate(others)}


_BYTES = _bytes_by_character()


def quantiles(norms: NDArray[np.float64]) -> tuple[float, ...]:
    """The 5% quantile, the median and the 95% quantile."""
    return tuple(float(each) for each in np.quantile(norms, QUANTILES))


def as_json(reports: Iterable[EncoderReport]) -> dict[str, Any]:
    """The reports by text encoder, as values for JSON."""
    return {each.encoder: _encoder_as_json(each) for each in reports}


def _encoder_as_json(report: EncoderReport) -> dict[str, Any]:
    vectors = []
    for number, norm in enumerate(report.norms):
        facts: dict[str, Any] = {"norm": round(float(norm), 6)}
        if report.vocabulary is not None:
            facts["percentile"] = round(100 * (report.rank_of(float(norm)) or 0.0), 2)
            facts["tokens"] = [
                {"token": each.name, "id": each.number, "similarity": round(each.similarity, 6)}
                for each in report.tokens[number]
            ]
        if report.embeddings and report.embeddings[number]:
            facts["embeddings"] = [
                {"name": each.name, "vector": each.number, "similarity": round(each.similarity, 6)}
                for each in report.embeddings[number]
            ]
        vectors.append(facts)
    found: dict[str, Any] = {"width": report.width, "vectors": vectors}
    if report.vocabulary is not None:
        found["vocabulary_norms"] = dict(zip(("p5", "median", "p95"), quantiles(report.vocabulary), strict=True))
    found["similarities"] = [[round(float(each), 4) for each in row] for row in report.similarities]
    return found
