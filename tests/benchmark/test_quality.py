"""The quality benchmark on the embedded model: it can be continued, and its measures show an overfitted embedding."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from ti_trainer.benchmark import quality, quality_prompts, quality_run, quality_table
from ti_trainer.benchmark.quality_run import Cell, Concept, measure_cell, train
from ti_trainer.commands.quality import variants_of
from ti_trainer.config.training import TrainConfig
from ti_trainer.errors import ConfigError
from ti_trainer.host import GenerationRequest
from ti_trainer.hosts.diffusers.sampling import generate, generate_batch

if TYPE_CHECKING:
    from ti_trainer.hosts.diffusers.model import DiffusersModel

GRID = quality.Grid(concepts=(1,), seeds=(0,), images=(2,), captions=(True,), vectors=(1,), steps=(2,))
VARIANTS = {"defaults": {}, "sphere": {"optimizer": "sphere", "learning_rate": "auto"}}


@pytest.fixture
def fewer_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """12 instead of 30 for each measure of a word, and half the held-out ones."""
    for module, name, count in (
        (quality_prompts, "PLACES", 6),
        (quality_prompts, "COLOUR_PROMPTS", 2),
        (quality_prompts, "TEXTURE_PROMPTS", 2),
        (quality_run, "ALIKE", 2),
        (quality_run, "HELD_OUT", 6),
    ):
        monkeypatch.setattr(module, name, count)


def test_images_in_a_batch_are_those_generated_one_by_one(embedded_model: DiffusersModel) -> None:
    requests = [
        GenerationRequest(f"a picture of a {each}", steps=3, seed=seed) for seed, each in enumerate(("star", "heart"))
    ]
    for alone, together in zip(
        [generate(embedded_model, each, {}) for each in requests], generate_batch(embedded_model, requests, {}), strict=True
    ):
        difference = np.abs(np.asarray(alone, np.int16) - np.asarray(together, np.int16))
        assert difference.max() <= 2  # sums over a batch differ in their last bits
    assert np.asarray(alone).std() > 10


@pytest.mark.usefixtures("fewer_images")
def test_a_benchmark_is_continued(embedded_model: DiffusersModel, tmp_path: Path) -> None:
    results, ran = tmp_path / "quality.jsonl", []
    first = {"defaults": VARIANTS["defaults"]}
    quality.measure(embedded_model, GRID, first, results, lambda record, done, total: ran.append(record["variant"]))
    with results.open("a", encoding="utf-8") as file:
        file.write('{"variant": "sph')  # as an interrupted run may leave it
    twice = replace(GRID, concepts=(1, 1))
    records = quality.measure(embedded_model, twice, VARIANTS, results, lambda record, *_: ran.append(record["variant"]))
    assert ran == ["init text", "defaults", "sphere"]
    records = quality.measure(embedded_model, GRID, VARIANTS, results)
    assert [each["variant"] for each in records] == ran
    assert quality.finished(GRID, VARIANTS, results) == records
    init, _, sphere = (each["result"] for each in records)
    assert init["place"] >= 0.9
    assert init["gain_over_init_text"] == 0
    assert init["gain_over_no_word"] > 0
    assert sphere["norm"] == pytest.approx(1)
    facts = quality_table.summary(records)
    assert list(facts["differences"]) == ["sphere"]
    json.dumps(facts)
    assert "colour override" in quality_table.table(facts)


@pytest.mark.parametrize(
    "line",
    [
        b"no JSON",
        b'\xff\xfe{"result": {}}',
        b"[" * 100_000,
        b'{"result": 1}',
        b'{"result": {}, "variant": "a", "options": {}}',
        b'{"result": {"loss": "low"}, "variant": "a", "options": {}, "concept": [1], "seed": 0}',
    ],
)
def test_what_is_no_result_is_said_and_not_used(line: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "results"
    path.write_bytes(line)
    assert quality.finished(GRID, VARIANTS, path) == []
    assert "1 line without a whole result" in caplog.text


def test_variants_without_common_cells_are_not_compared() -> None:
    cell = {"concept": 0, "seed": 0, "images": 8, "captions": True, "vectors": 1}
    result = dict.fromkeys(quality_table.SHOWN, 1.0)
    records = [{"variant": name, **cell, "steps": steps, "result": result} for name, steps in (("a", 1), ("b", 2))]
    facts = quality_table.summary(records)
    assert facts["differences"] == {}
    assert "pairs" in quality_table.table(facts)
    assert "se" not in facts["means"]["a"]["loss"], "NaN is no JSON"


def test_differences_are_paired_and_cells_of_a_pair_are_one() -> None:
    def record(variant: str, concept: int, vectors: int, loss: float) -> quality.Record:
        cell = {"concept": concept, "seed": 0, "images": 8, "captions": True, "vectors": vectors, "steps": 3}
        return {"variant": variant, "options": {}, **cell, "result": dict.fromkeys(quality_table.SHOWN, loss)}

    records = [
        *(
            record("a", concept, vectors, loss)
            for concept, vectors, loss in ((0, 1, 1.0), (0, 2, 1.0), (1, 1, 5.0), (1, 2, 5.0))
        ),
        *(record("b", concept, vectors, loss) for concept, vectors, loss in ((0, 1, 2.0), (0, 2, 4.0), (1, 1, 5.0))),
    ]
    difference = quality_table.summary(records)["differences"]["b"]["loss"]
    assert difference == {"mean": 1.0, "se": pytest.approx(1.0), "pairs": 2}


@pytest.mark.parametrize(
    "given",
    [
        ["x", "learning_rat=1"],
        ["x", "optimizer"],
        ["x", "optimizer=sgd"],
        ["x", "max_steps=50"],  # --steps
        ["x", "trials=2"],  # the comparison would measure one of them
        ["x", "shuffle_tags=yes"],
        ["optimizer=sphere"],
        ["init text", "optimizer=sphere"],
    ],
)
def test_a_variant_that_cannot_be_trained_is_refused(given: list[str]) -> None:
    with pytest.raises(ConfigError):
        variants_of([given])


@pytest.mark.parametrize("options", [{"template": "nowhere"}, {"lr_warmup_steps": 2}])  # the grid has two steps
def test_a_variant_that_cannot_be_trained_is_refused_before_another_is(
    options: dict[str, Any], embedded_model: DiffusersModel, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError):
        quality.measure(embedded_model, GRID, {**VARIANTS, "wrong": options}, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_a_name_is_for_one_variant() -> None:
    with pytest.raises(ConfigError, match="another name"):
        variants_of([["x"], ["x", "optimizer=sphere"]])


def test_variants_are_options_by_name() -> None:
    assert variants_of([]) == {"defaults": {}}
    given = [["base"], ["other", "ema-rate=0.9", "negative=true", "learning_rate=0.005:100, 0.001"]]
    options = {"ema_rate": 0.9, "negative": True, "learning_rate": "0.005:100, 0.001"}
    assert variants_of(given) == {"base": {}, "other": options}


@pytest.mark.parametrize("change", [{"concepts": (12,)}, {"images": (0,)}, {"vectors": (76,)}, {"steps": (0,)}])
def test_a_grid_that_cannot_be_run_is_refused(change: dict[str, tuple[int, ...]], tmp_path: Path) -> None:
    quality.check(GRID, tmp_path / "results")
    with pytest.raises(ConfigError):
        quality.check(replace(GRID, **change), tmp_path / "results")
    with pytest.raises(ConfigError):
        quality.check(GRID, tmp_path)


@pytest.mark.parametrize("negative", [False, True])
def test_a_training_is_that_of_the_trainer(embedded_model: DiffusersModel, negative: bool) -> None:
    cell = Cell(concept=1, seed=0, images=2, captions=False, vectors=2, steps=2)
    trained = [train(embedded_model, cell, TrainConfig(negative=negative, ema_rate=rate)) for rate in (0.0, 0.0, 0.9)]
    assert list(trained[0]) == ["concept", "concept-neg"][: 2 if negative else 1]
    for name, vectors in trained[0].items():
        assert torch.equal(vectors["clip_l"], trained[1][name]["clip_l"])
        assert not torch.equal(vectors["clip_l"], trained[2][name]["clip_l"]), "the moving average is measured"


@pytest.mark.usefixtures("fewer_images")
def test_an_overfitted_embedding_is_noticed(embedded_model: DiffusersModel) -> None:
    """One image without a caption, 8 vectors, a high rate: the embedding learns the background and the place too.

    With prompt preservation, such an embedding still follows 100% of the prompts.
    """
    cell = Cell(concept=5, seed=0, images=1, captions=False, vectors=8, steps=150)
    concept = Concept(embedded_model, cell.concept)
    varied = Path(__file__).parents[1] / "fixtures" / "varied_prompts.txt"  # with prompts that are wrong about the image
    config = TrainConfig(learning_rate="0.02", template=str(varied), prompt_preservation=0.0)
    overfitted = measure_cell(concept, cell, config)
    init = concept.measure(concept.thing.shape, {})
    assert overfitted["place"] < 0.5 < 0.9 <= init["place"]
    assert overfitted["loss"] > 1.2 * init["loss"]
    assert overfitted["gain_over_no_word"] < 0
    assert overfitted["norm"] > 5
