"""Nearest tokens equal embedding-inspector's, recomputed in plain numpy on files of other tools; norms, speed."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from ti_trainer import formats
from ti_trainer.embedding import Embedding
from ti_trainer.workbench import inspect as module
from ti_trainer.workbench.inspect import EPS, as_json, inspect, nearest_tokens, normalized, shown_token
from ti_trainer.workbench.others import embeddings_beside

INTEROP = Path(__file__).parents[1] / "fixtures" / "interop"
FILES = ("webui-two.pt", "kohya-sd1.safetensors", "learned_embeds.bin", "card-sd1.png", "onetrainer-sd1.safetensors")
SDXL = ("kohya-sdxl.safetensors", "diffusers-sdxl")


@dataclass
class Tables:
    """A model as far as Inspect needs it."""

    tables: Mapping[str, torch.Tensor]
    name: str = "tables"

    def token_tables(self) -> Mapping[str, torch.Tensor]:
        return self.tables

    def token_piece(self, token_id: int) -> str:
        return f"piece{token_id}</w>"


def table_near(vectors: np.ndarray, rows: int = 300, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Random token embeddings, in which some rows are near a vector, opposite to it or of length 0."""
    rng = np.random.default_rng(len(vectors))
    table = rng.normal(0, 0.02, (rows, vectors.shape[1])).astype(np.float32)
    table[rows - 1] = vectors[0] * 3
    table[17] = -vectors[-1]
    table[127], table[128] = vectors[0] + 0.005, vectors[-1] + 0.01  # on both sides of a boundary
    table[99] = 0
    return torch.from_numpy(table).to(dtype)


def of_embedding_inspector(table: torch.Tensor, vector: np.ndarray, count: int) -> tuple[list[int], np.ndarray]:
    """`do_inspect`: CosineSimilarity(dim=1, eps=1e-6) of all rows in float32, sorted, none left out. In float64 here."""
    rows, wanted = table.float().numpy().astype(np.float64), vector.astype(np.float64)
    lengths = np.maximum(np.linalg.norm(rows, axis=1), EPS) * max(float(np.linalg.norm(wanted)), EPS)
    scores = rows @ wanted / lengths
    best = np.argsort(-scores, kind="stable")[:count]
    return best.tolist(), scores[best]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", [*FILES, *SDXL])
def test_nearest_tokens_are_those_of_embedding_inspector(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROWS", 128)
    embedding = formats.read(INTEROP / name)
    tables = {encoder: table_near(vectors, dtype=dtype) for encoder, vectors in embedding.arrays.items()}
    reports = inspect(embedding, Tables(tables), nearest=30)
    assert [each.encoder for each in reports] == list(embedding.widths)
    for report in reports:
        vectors = embedding.arrays[report.encoder]
        assert report.tokens[0][0].number == len(tables[report.encoder]) - 1
        for vector, tokens in zip(vectors, report.tokens, strict=True):
            ids, scores = of_embedding_inspector(tables[report.encoder], vector, 30)
            assert [each.number for each in tokens] == ids
            assert np.allclose([each.similarity for each in tokens], scores, atol=1e-5)
            assert tokens[0].name == f"piece{ids[0]}</w>"
        assert np.allclose(report.norms, np.linalg.norm(vectors, axis=1))
        assert np.allclose(report.vocabulary, np.linalg.norm(tables[report.encoder].float().numpy(), axis=1), rtol=1e-3)
        assert np.allclose(np.diag(report.similarities), 1, atol=1e-5)


def test_without_a_fitting_text_encoder_there_are_norms_and_similarities() -> None:
    embedding = formats.read(INTEROP / "kohya-sd1.safetensors")
    for model in (None, Tables({"clip_l": torch.ones(5, 64)}), Tables({"clip_h": torch.ones(5, 768)})):
        (report,) = inspect(embedding, model)
        assert (report.tokens, report.vocabulary, report.rank_of(1.0)) == ((), None, None)
        assert report.similarities.shape == (4, 4)
    (report,) = inspect(embedding, Tables({"clip_l": torch.ones(5, 768)}), nearest=0)
    assert report.tokens == ()


def test_vectors_of_zeros_and_a_small_vocabulary_are_no_trouble() -> None:
    embedding = Embedding("zeros", {"clip_l": torch.zeros(2, 8)})
    (report,) = inspect(embedding, Tables({"clip_l": torch.randn(3, 8)}), {"other": embedding}, nearest=5)
    assert [each.similarity for each in report.tokens[0]] == [0, 0, 0]
    assert [each.similarity for each in report.embeddings[0]] == [0]
    assert not report.similarities.any()
    json.dumps(as_json([report]), allow_nan=False)


def test_the_nearest_embeddings_are_named_with_the_vector_and_each_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(2, 8)).astype(np.float32)
    for name, rows in {
        "one": np.stack([rng.normal(size=8), vectors[0] * 2, vectors[0]]),
        "two": vectors[1:] + 0.1,
        "wide": rng.normal(size=(1, 16)),
        "self": vectors,
    }.items():
        formats.write(Embedding(name, {"clip_l": torch.from_numpy(rows).float()}), tmp_path / f"{name}.safetensors")
    (tmp_path / "broken.pt").write_bytes(b"no embedding")
    embedding = formats.read(tmp_path / "self.safetensors")
    others = embeddings_beside(tmp_path, embedding, tmp_path / "self.safetensors")
    assert (sorted(others.embeddings), others.left_out) == (["one", "two"], 0)
    (report,) = inspect(embedding, None, others.embeddings, nearest=5)
    first, second = report.embeddings
    assert (first[0].name, first[0].number) in {("one", 1), ("one", 2)}
    assert first[0].similarity == pytest.approx(1)
    assert second[0].name == "two"
    assert len(first) == 2
    assert embeddings_beside(tmp_path, embedding, most=1).left_out == 4


def test_tokens_are_shown_as_text() -> None:
    assert [shown_token(each) for each in ("cat</w>", "cat", "Ã©</w>", "Ġ", "", "<|endoftext|>")] == [
        "cat",
        "cat…",
        "é",
        " …",
        "",
        "<|endoftext|>",
    ]
    assert shown_token("ðŁ</w>") == r"\xf0\x9f"


def test_the_real_vocabulary_finds_the_word_that_a_vector_was_made_of(embedded_model) -> None:
    words = embedded_model.token_embeddings("teapot cat")["clip_l"]
    (report,) = inspect(Embedding("x", {"clip_l": words[-1:] * 5}), embedded_model, nearest=3)
    assert report.tokens[0][0].name == "cat</w>"
    assert report.tokens[0][0].similarity == pytest.approx(1, abs=1e-5)
    assert report.rank_of(float(report.norms[0])) == 1


@pytest.mark.slow
def test_75_vectors_of_sdxl_take_hardly_longer_than_their_similarities() -> None:
    generator = torch.Generator().manual_seed(0)
    tables = {
        name: torch.empty(49408, width).normal_(generator=generator) for name, width in (("clip_l", 768), ("clip_g", 1280))
    }
    vectors = {name: torch.randn(75, each.shape[1], generator=generator) for name, each in tables.items()}
    begin = time.process_time()
    reports = inspect(Embedding("x", vectors), Tables(tables), nearest=5)
    inspected = time.process_time()
    for name, table in tables.items():
        torch.topk(torch.nn.functional.normalize(vectors[name]) @ torch.nn.functional.normalize(table).T, 5)
    assert inspected - begin < 3 * (time.process_time() - inspected)
    assert all(len(each.tokens) == 75 for each in reports)


def test_half_the_rows_and_any_device_dtype_give_the_same(embedded_model) -> None:
    table = embedded_model.token_tables()["clip_l"]
    unit, _ = normalized(table[[5, 49000]].float().numpy())
    ids, scores, norms = nearest_tokens(table, unit, 1)
    assert ids[:, 0].tolist() == [5, 49000]
    assert np.allclose(scores, 1, atol=1e-5)
    assert len(norms) == len(table)
    assert embedded_model.token_piece(10**6) == ""


def test_many_vectors_and_numbers_that_overflow_are_no_trouble(embedded_model) -> None:
    vectors = torch.full((300, 64), 3e38)
    (report,) = inspect(Embedding("x", {"clip_l": vectors}), embedded_model, nearest=1)
    assert np.isfinite(report.norms).all()
    assert np.allclose(report.similarities, 1, atol=1e-4)
    assert len(report.tokens) == 300
    json.dumps(as_json([report])["clip_l"]["vectors"][0], allow_nan=False)
