"""Similarity of a comparison's images to training images and prompts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fakes import TinyHost
from PIL import Image

from ti_trainer.errors import ConfigError
from ti_trainer.workbench import scores
from ti_trainer.workbench.scores import Score, Scoring


class Network:
    """Embeds images by their mean colour, and the text "red" as red."""

    def __init__(self, tokenizer: object = True) -> None:
        self.tokenizer = tokenizer

    def of_images(self, images: list[Image.Image]) -> torch.Tensor:
        colours = torch.tensor([each.resize((1, 1)).getpixel((0, 0)) for each in images], dtype=torch.float32)
        return torch.nn.functional.normalize(colours, dim=1)

    def of_texts(self, texts: list[str]) -> torch.Tensor:
        return torch.tensor([[1.0, 0, 0] if "red" in each else [0, 1.0, 0] for each in texts])


def paint(path: Path, *colours: str) -> list[Path]:
    path.mkdir()
    for number, colour in enumerate(colours):
        Image.new("RGB", (16, 16), colour).save(path / f"{number}.png")
    return sorted(path.iterdir())


def test_images_are_compared_with_the_training_images_and_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paint(tmp_path / "trained", "red", "red", "lime", "blue")
    made = dict(enumerate(paint(tmp_path / "made", "red", "lime")))
    scoring, notes = Scoring(tmp_path, tmp_path / "trained"), []
    texts = {0: "a red cat", 1: "a red cat"}
    found = dict(scoring.measure(Network(), TinyHost(tmp_path), made, texts, notes.append))
    assert found[0] == Score(pytest.approx(0.5), pytest.approx(1))
    assert found[1] == Score(pytest.approx(0.25), pytest.approx(0))
    assert Score.mean(list(found.values())).lines() == ["similarity to the images 0.375", "similarity to the prompt 0.500"]
    assert notes == []
    monkeypatch.setattr(scores, "MOST_REFERENCES", 2)
    found = dict(scoring.measure(Network(None), TinyHost(tmp_path), made, texts, notes.append))
    assert found[0] == Score(pytest.approx(0.5), None)
    assert "2 of the training images" in notes[0]
    assert Score.mean([]) is None


def test_folders_are_checked_by_the_host_and_a_dino_needs_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = TinyHost(tmp_path)
    (tmp_path / "forbidden").mkdir()
    for scoring in (Scoring(tmp_path / "forbidden"), Scoring(tmp_path, tmp_path / "forbidden")):
        with pytest.raises(ConfigError, match="not for the page"):
            scoring.check(host)
    with pytest.raises(ConfigError) as refused:
        Scoring(tmp_path, tmp_path / "nowhere").check(host)
    assert refused.value.option == "images"
    monkeypatch.setattr(scores.Similarity, "load", lambda folder, device: Network(None))
    with pytest.raises(ConfigError, match="no text encoder") as refused:
        Scoring(tmp_path).load()
    assert refused.value.option == "images"
