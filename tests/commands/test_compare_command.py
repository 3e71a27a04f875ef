"""compare: a grid of images of a run's copies, and which copy to use."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("diffusers")  # the standalone host needs it; the WebUI does without

from PIL import Image, ImageChops

from ti_trainer import formats
from ti_trainer.runs.run_folder import Run
from ti_trainer.workbench.comparison_run import Progress

FAST = ("--steps", 1, "--seeds", 1, "--prompts", "a [name]")


@pytest.fixture
def run(word: Path, tmp_path: Path) -> Run:
    """A run of `thing` with copies at steps 2 and 4, with different vectors."""
    made = Run.create(
        tmp_path / "textual_inversion", "thing", {"name": "thing", "images": str(tmp_path / "gone"), "train": {}}
    )
    embedding = formats.read(word)
    for step in (2, 4):
        vectors = {encoder: each * (step - 3) for encoder, each in embedding.vectors.items()}
        made.write_copy(replace(embedding, vectors=vectors, step=step))
    made.validation_file.write_text("step,loss\n2,0.25\n4,0.5\n")
    return made


def test_copies_are_compared_continued_and_one_is_advised(cli: Callable, run: Run, tmp_path: Path) -> None:
    done = cli("compare", "thing", "--embedding", "thing", *FAST)
    assert done.code == 0, done.err
    assert done.out.splitlines()[:2] == [
        "Row 1: thing, step 4, validation loss 0.50000",
        "Row 2: thing, step 2, validation loss 0.25000 (lowest)",
    ]
    assert "Compared: 3 images" in done.out
    folder = tmp_path / "textual_inversion" / "comparisons" / "thing"
    assert sorted(path.name for path in folder.iterdir()) == [
        "01-01.png",
        "02-01.png",
        "03-01.png",
        "comparison.json",
        "grid.png",
    ]
    first, second = (Image.open(folder / f"0{row}-01.png") for row in (1, 2))
    assert ImageChops.difference(first, second).getbbox(), "different copies give different images"
    settings = json.loads((folder / "comparison.json").read_text())["settings"]
    assert (settings["steps"], settings["prompts"]) == (1, ["a [name]"])
    advice = next(line for line in done.out.splitlines() if "convert" in line)
    assert "thing-2.safetensors" in advice
    again = cli("compare", run.id, "--embedding", "thing", *FAST)
    assert "Continued in" in again.err
    assert "3 images, 0 of them new" in again.out
    other = cli("compare", "thing", "--copies", 4, *FAST)
    assert "a new comparison" in other.err
    assert (folder.with_name("thing-2") / "grid.png").is_file()


def test_what_cannot_be_compared_is_one_message(cli: Callable, run: Run, tmp_path: Path) -> None:
    for arguments, message in (
        ((), "Copies: found none"),
        (("nothing",), "There is no run 'nothing'"),
        (("thing", "--copies", 3), "Copies: found 3"),
        (("thing", "--prompts", "a cat"), "without [name]"),
        (("thing", "--images", tmp_path), "--images: only used with --similarity"),
        (("thing", "--similarity", tmp_path / "none"), "expected the folder of a CLIP or a DINO"),
        (("--embedding", "none"), "There is no embedding 'none'"),
    ):
        done = cli("compare", *arguments)
        assert done.code == 1
        assert message in done.errors[0]
    assert not (tmp_path / "textual_inversion" / "comparisons").exists()


def test_ctrl_c_keeps_what_is_finished(cli: Callable, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from ti_trainer.commands import compare

    reporter = compare._reporter

    def pressed(bar: object) -> Callable[[Progress], None]:
        import signal

        report = reporter(bar)
        return lambda progress: signal.raise_signal(signal.SIGINT) if progress.done == 1 else report(progress)

    monkeypatch.setattr(compare, "_reporter", pressed)
    done = cli("compare", "thing", *FAST)
    assert done.code == 130
    assert "Stopping after this image" in done.err
    assert "Stopped after 1 of 2 images" in done.out
