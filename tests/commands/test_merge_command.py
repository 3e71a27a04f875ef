"""merge on the command line: errors with their place, files, preview, and training the result further."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ti_trainer import formats
from ti_trainer.embedding import Embedding

Cli = Callable[..., Any]


def test_an_error_shows_where_it_is(cli: Cli, word: Path) -> None:
    outcome = cli("merge", "thing + 2 * nosuch")
    assert outcome.code == 1
    assert outcome.err.splitlines() == [
        "Error: Expression, character 13: there is no embedding 'nosuch' in embeddings (found: thing).",
        "thing + 2 * nosuch",
        "            ^^^^^^",
    ]


def test_a_result_is_only_shown_unless_it_is_named(cli: Cli, word: Path, tmp_path: Path) -> None:
    formats.write(Embedding("b", {"clip_l": torch.ones(2, 64)}), tmp_path / "other.pt")
    outcome = cli("merge", "0.5 * thing + other + c", "--embedding", "other.pt", "--embedding", "c=other.pt")
    assert outcome.code == 0
    assert "2 vectors for embedded (clip_l 64)." in outcome.out
    assert "Not saved" in outcome.out
    assert cli("merge", "c", "--embedding", "c=other.pt", "--embedding", "C=other.pt").code == 1
    assert cli("merge", "c", "--embedding", "c=missing.pt").errors[0].count("There is no file missing.pt") == 1
    assert len(list((tmp_path / "embeddings").iterdir())) == 1


def test_names_are_checked_first_and_files_are_kept(cli: Cli, word: Path) -> None:
    before = word.read_bytes()
    outcome = cli("merge", "2 * thing", "-o", "thing")
    assert outcome.code == 1
    assert "(--overwrite)" in outcome.errors[0]
    assert word.read_bytes() == before
    assert "x.txt cannot be written" in cli("merge", "thing", "--preview", "x.txt").errors[0]
    assert "--seed: found -1" in cli("merge", "thing", "--preview", "x.png", "--seed", -1).errors[0]
    assert "ends like a file name" in cli("merge", "2 * thing", "-o", "x.pt").errors[0]
    assert cli("merge", "2 * thing", "-o", "thing", "--overwrite").code == 0
    assert formats.read(word).info["expression"] == "2 * thing"


def test_an_expression_that_begins_with_a_minus(cli: Cli, word: Path) -> None:
    assert cli("merge", "--", "-thing").code == 0
    assert cli("merge", "-thing + 0.5").code == 1  # with a space it is no option; an error of the expression
    refused = cli("merge", "-thing")
    assert refused.code == 2
    assert "-- '-a'" in refused.err.splitlines()[-1]


@pytest.mark.slow
def test_a_result_is_previewed_and_trained_further(train: Callable[..., Any], cli: Cli, word: Path, tmp_path: Path) -> None:
    outcome = cli("merge", 'cat(thing, text("(red:1.2)"))', "-o", "my-mix", "--preview", "p.png")
    assert outcome.code == 0
    with Image.open(tmp_path / "p.png") as image:
        assert image.width > 2 * 64
    assert train("--max-steps", 1, name="my-mix").code == 0
    trained = formats.read(tmp_path / "embeddings/my-mix.safetensors")
    assert (trained.step, trained.num_vectors, trained.info["merged_from"]) == (1, 3, "thing")
