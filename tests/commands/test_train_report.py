"""What train says at the end, and that what it says to do next works."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from ti_trainer import formats
from ti_trainer.commands import PROGRAM
from ti_trainer.formats import embeddings_dir


@pytest.mark.parametrize("negative", [False, True])
def test_a_moving_average_goes_into_use_with_the_commands_that_are_printed(
    cli: Callable, train: Callable, tmp_path: Path, negative: bool
) -> None:
    assert cli("create", "my-hero", "--init-text", "star", *(["--negative-vectors", 3] if negative else [])).code == 0
    wanted = ["my-hero-ema", "my-hero-ema-neg"] if negative else ["my-hero-ema"]
    outcome = train("--max-steps", 2, "--ema-rate", 0.5, *(["--negative"] if negative else []), name="my-hero")
    assert outcome.code == 0, outcome.err
    for label, copy in zip(("moving average", "its negative"), ("my-hero-ema-2", "my-hero-neg-ema-2"), strict=True):
        assert (f"  {label:<14} " in outcome.out) == (label == "moving average" or negative)
        assert (f"{copy}.safetensors" in outcome.out) == (label == "moving average" or negative)
    printed = [line.strip() for line in outcome.out.splitlines() if line.strip().startswith(f"{PROGRAM} convert")]
    assert len(printed) == len(wanted)
    for line, name in zip(printed, wanted, strict=True):
        arguments = shlex.split(line.removeprefix(PROGRAM))
        assert cli(*arguments).code == 0
        used, file = embeddings_dir.load(tmp_path / "embeddings", name)
        assert formats.read(file).name == name
        assert used.vectors["clip_l"].equal(formats.read(tmp_path / arguments[1]).vectors["clip_l"])


def test_without_a_moving_average_nothing_is_said_of_one(train: Callable, word: Path) -> None:
    assert word.is_file()
    outcome = train("--max-steps", 1)
    assert outcome.code == 0, outcome.err
    assert "moving average" not in outcome.out
    assert "convert" not in outcome.out
