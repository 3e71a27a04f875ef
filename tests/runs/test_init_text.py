"""Suggest an initial text: which texts are tried, their order, and what the page and the command line say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fakes import TinyModel
from PIL import Image

from ti_trainer.__main__ import main
from ti_trainer.data.subsets import read_subsets
from ti_trainer.embedding import Embedding
from ti_trainer.runs import init_text
from ti_trainer.runs.datasets import items_to_measure
from ti_trainer.runs.init_text import COMMON, FINALISTS, IMAGES, Ranking, candidates, rank
from ti_trainer.runs.start_notes import start_notes
from ti_trainer.tiny_model.making.scenes import Thing, concept, write_images
from ti_trainer.training.evaluation import validation_loss
from ti_trainer.training.trainer import Trainer
from ti_trainer.workbench.candidates import Candidate


def images(folder: Path, count: int) -> Path:
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 255, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a [name] on a sofa" if number else "in the garden, 1girl", encoding="utf-8")
    return folder


@pytest.mark.parametrize(("texts", "said"), [("star; *", True), ("star; a * in the sky", False)])
def test_an_initial_text_that_describes_nothing_is_reported(trainer: Callable[..., Trainer], texts: str, said: bool) -> None:
    run = trainer(max_steps=2, trials=2, trial_init_texts=texts)
    notes = " ".join(start_notes(run, run.embedding))
    assert ("x-word has the initial text '*', which describes nothing" in notes) is said
    assert Candidate("", Embedding("x", run.embedding.vectors, info={"init_text": "*"}), Path()).init_text == ""


def test_texts_come_from_the_user_the_captions_and_a_list() -> None:
    found = candidates(["A sofa, red", "", "the (red:1.2) cat", "[name] on red"], [" wooden toy ", "", "cat"])
    assert found[:2] == ["wooden toy", "cat"]
    assert found[2] == "red", "the most frequent first"
    assert set(found[2:4]) <= {"red", "sofa"}
    assert "[name]" not in found
    assert len(found) == len(set(found))
    assert {each.strip() for each in COMMON.split(",")} <= set(found)


def test_the_order_is_that_of_the_validation_loss_with_captions(tmp_path: Path) -> None:
    model, subsets, seen = TinyModel(), read_subsets(images(tmp_path, 12)), list[tuple[int, int]]()
    ranking = rank(model, subsets, ["zebra"], lambda done, total: seen.append((done, total)))
    items = items_to_measure(model, subsets, IMAGES)
    assert len(items) == ranking.num_images == 6, "every second of 12"

    def loss(text: str) -> float:
        word = text or ""
        prompts = [
            f"{f'a photo of {word}' if word else 'a photo'}, {(each.caption or '').replace('[name]', word)}"
            for each in items
        ]
        return validation_loss(model, items, prompts, {})

    assert [text for text, _ in ranking.losses] == sorted((text for text, _ in ranking.losses), key=loss)
    assert len(ranking.losses) == FINALISTS
    for text, found in ranking.losses:
        assert found == pytest.approx(loss(text), rel=1e-5)
    assert ranking.without == pytest.approx(loss(""), rel=1e-5)
    assert seen[-1] == (ranking.num_texts + FINALISTS + 1,) * 2


def test_a_text_that_is_worse_than_none_is_not_suggested() -> None:
    ranking = Ranking((("cat", 0.5), ("dog", 0.6)), 0.4, 3, 2)
    assert ranking.best is None
    assert "better than no text" in ranking.advice
    assert list(ranking.rows()) == [("cat", "25.0% higher"), ("dog", "50.0% higher")]


def test_the_command_names_the_shape(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(init_text, "COMMON", "circle, heart")
    write_images(tmp_path, concept(Thing("star", (0.9, 0.2, 0.2)), 2, 7))
    assert main(["suggest", "--images", str(tmp_path), "--text", "star", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "2 images" in out
    assert "Suggested initial text: star." in out
