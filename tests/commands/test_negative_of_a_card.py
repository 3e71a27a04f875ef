"""info and convert with cards that carry a negative embedding."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ti_trainer import formats
from ti_trainer.embedding import Embedding

Cli = Callable[..., Any]


def embedding(name: str, num_vectors: int) -> Embedding:
    return Embedding(name, {"clip_l": torch.full((num_vectors, 64), num_vectors / 8)}, 30, "embedded")


@pytest.fixture
def card(tmp_path: Path) -> Path:
    path = tmp_path / "thing-30.png"
    formats.write_card(Image.new("RGB", (64, 64)), embedding("thing", 2), path, negative=embedding("thing-neg", 5))
    return path


def test_info_says_what_a_card_carries_besides(cli: Cli, card: Path, word: Path) -> None:
    outcome = cli("info", card)
    assert outcome.code == 0
    assert "vectors clip_l 2 x 64, trained 30 steps, on embedded, with the negative thing-neg" in outcome.out
    facts = [json.loads(line) for line in cli("info", card, word, "--json").out.splitlines()]
    assert [each["negative"] for each in facts] == ["thing-neg", None]
    assert "negative" not in cli("info", word).out


def test_info_takes_a_file_for_what_is_in_it(cli: Cli, word: Path, tmp_path: Path) -> None:
    """Its ending need not be right."""
    odd = tmp_path / "odd.png"
    odd.write_bytes(word.read_bytes())
    outcome = cli("info", odd)
    assert (outcome.code, outcome.out.count("2 x 64")) == (0, 1)


def test_info_says_when_the_negative_is_damaged(cli: Cli, card: Path) -> None:
    whole = card.read_bytes()
    at = whole.index(b"ti-trainer-negative")
    card.write_bytes(whole[: at + 40] + b"!!!!" + whole[at + 44 :])
    outcome = cli("info", card)
    assert outcome.code == 1
    assert "thing-30.png cannot be read as an embedding" in outcome.out


def test_convert_takes_the_negative_of_a_card_instead(cli: Cli, card: Path, tmp_path: Path) -> None:
    target = tmp_path / "negative.safetensors"
    outcome = cli("convert", card, target, "--negative")
    assert (outcome.code, outcome.out.strip()) == (0, f"Wrote {target}: thing-neg, 5 vectors, embedded.")
    written = formats.read(target)
    assert (written.name, written.step) == ("thing-neg", 30)
    assert torch.equal(written.vectors["clip_l"], embedding("", 5).vectors["clip_l"])
    assert cli("convert", card, target, "--negative").code == 1
    assert cli("convert", card, target, "--negative", "--name", "bad", "--overwrite").code == 0
    assert formats.read(target).name == "bad"
    assert cli("convert", card, tmp_path / "word.safetensors").code == 0
    assert formats.read(tmp_path / "word.safetensors").num_vectors == 2


def test_convert_says_what_has_no_negative(cli: Cli, card: Path, word: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.png"
    formats.write(embedding("thing", 2), plain)
    for source in (word, plain):
        outcome = cli("convert", source, tmp_path / "out.pt", "--negative")
        assert outcome.code == 1
        assert f"{source} has no second, negative embedding; expected the .png card" in outcome.errors[0]
    assert "There is no file" in cli("convert", tmp_path / "missing.pt", tmp_path / "out.pt", "--negative").errors[0]
    assert not (tmp_path / "out.pt").exists()
