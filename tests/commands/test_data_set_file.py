"""A dataset file of two folders, with masks and in buckets, on the command line: trained on, resumed, measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from ti_trainer.runs.run_folder import Run
from ti_trainer.tiny_model import DEMO

Cli = Callable[..., "object"]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """The images of the demonstration with masks of their middles, and lying ones of the same; kohya's keys."""
    for name in ("stars", "masks", "lying"):
        (tmp_path / name).mkdir()
    for number, path in enumerate(sorted(DEMO.glob("*.png"))[:4]):
        with Image.open(path) as opened:
            image = opened.convert("RGB").resize((256, 256))
        (tmp_path / "stars" / path.name).write_bytes(path.read_bytes())
        (tmp_path / "stars" / f"{path.stem}.caption").write_text("at sunset")
        mask = Image.new("L", (128, 128), 40)
        ImageDraw.Draw(mask).ellipse((32, 32, 96, 96), fill=255)
        mask.save(tmp_path / "masks" / path.name)
        image.crop((0, 50, 256, 206)).save(tmp_path / "lying" / f"{number}.jpg")
    file = tmp_path / "set.toml"
    file.write_text(
        """
        [general]
        caption_extension = ".caption"
        [[datasets]]
        resolution = 512
        enable_bucket = true
        [[datasets.subsets]]
        image_dir = "stars"
        conditioning_data_dir = "masks"
        num_repeats = 2
        [[datasets.subsets]]
        image_dir = "lying"
        class_tokens = "in the rain"
        custom_attributes = { loss_weight = 0.5 }
        """
    )
    return file


def test_it_is_trained_on_resumed_and_measured(cli: Cli, word: Path, dataset: Path, tmp_path: Path) -> None:
    common = ("--max-steps", 6, "--buckets", "--width", 192, "--height", 192, "--preview-every", 0, "--batch-size", 2)
    outcome = cli("train", word.stem, "--images", dataset, *common)
    assert outcome.code == 0, outcome.err
    assert "Done after step 6, on 8 images." in outcome.out
    (run,) = Run.all(tmp_path / "textual_inversion")
    assert run.settings()["train"]["buckets"] is True
    assert [Path(each["image_dir"]).name for each in run.settings()["dataset"]] == ["stars", "lying"]
    assert cli("train", word.stem, "--images", dataset, "--resume", "--max-steps", 8).code == 0
    measured = json.loads(cli("evaluate", word.stem, "--images", dataset, "--json").out)
    assert (measured["images"], measured["step"]) == (8, 8)


def test_what_is_wrong_with_it_is_said_in_one_line(cli: Cli, word: Path, dataset: Path) -> None:
    dataset.write_text(dataset.read_text().replace("num_repeats = 2", 'num_repeats = "2"'))
    outcome = cli("train", word.stem, "--images", dataset)
    assert outcome.code == 1
    assert "set.toml, subset 1: num_repeats: found '2', expected a whole number" in outcome.err
    assert cli("evaluate", word.stem, "--images", dataset.with_name("gone.toml")).code == 1
