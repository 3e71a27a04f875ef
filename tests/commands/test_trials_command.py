"""train --trials: from the command line to the files, on the model that ships; two processes do what one does."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from ti_trainer import formats
from ti_trainer.__main__ import main
from ti_trainer.runs.run_folder import Run

TRIES = (
    *(
        "--trials",
        3,
        "--trial-learning-rates",
        "0.005; 0.02:5, 0.01",
        "--trial-init-texts",
        ";; heart",
        "--trial-vectors",
        "2, 2, 1",
    ),
    *("--preview-every", 10, "--preview-sampling-steps", 1, "--save-every", 10, "--evaluate-every", 10, "--csv-every", 5),
)


def run_of(folder: Path) -> Run:
    """The only one."""
    (path,) = folder.glob("textual_inversion/*/*")
    return Run(path)


def test_train_keeps_the_best_of_three_and_says_so(run: Callable, images: Path, word: Path, tmp_path: Path) -> None:
    outcome = run("train", "thing", "--images", images, "--max-steps", 20, *TRIES)
    assert outcome.code == 0, outcome.err
    folder = run_of(tmp_path)
    with (folder.path / "trials.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["learning_rate"], row["init_text"], row["num_vectors"]) for row in rows] == [
        ("0.005", "star", "2"),
        ("0.02:5, 0.01", "star", "2"),
        ("0.005", "heart", "1"),
    ]
    best = min(rows, key=lambda row: float(row["validation_loss"]))
    assert [row for row in rows if row["kept"] == "yes"] == [best]
    (said,) = (line.strip() for line in outcome.out.splitlines() if line.startswith("  kept"))
    assert said.startswith(
        f"kept           trial {best['number']} of 3, validation loss {float(best['validation_loss']):.5f}; "
    )
    assert all(f"{float(row['validation_loss']):.5f}" in said for row in rows)
    kept = formats.read(word)
    copy = formats.read(folder.path / "embeddings" / f"thing-trial{best['number']}-20.safetensors")
    assert torch.equal(kept.vectors["clip_l"], copy.vectors["clip_l"])
    assert (kept.step, kept.num_vectors) == (20, int(best["num_vectors"]))
    assert [step for step, _ in folder.previews()] == [0, 10, 20]
    assert len(folder.validation_losses()) == 3
    assert folder.settings()["train"]["trials"] == 3

    told = run("evaluate", "thing", "--images", images, "--json")
    losses = json.loads(told.out)["loss"]
    assert losses["word"] > 0

    refused = run("train", "thing", "--images", images, "--max-steps", 40, *TRIES)
    assert refused.code == 1
    assert "has been trained for 20 steps already" in refused.err
    stopped = run("train", "thing", "--images", images, "--max-steps", 25, "--resume")
    assert stopped.code == 0, stopped.err
    assert formats.read(word).step == 25


def test_two_processes_are_as_one(start: Callable, images: Path, word: Path, tmp_path: Path) -> None:
    same = ("train", "thing", "--images", images, *TRIES, "--gradient-accumulation-steps", 2, "--max-steps", 4)
    one = tmp_path / "one"
    (one / "embeddings").mkdir(parents=True)
    (one / "embeddings" / word.name).write_bytes(word.read_bytes())
    places = ("--embeddings-dir", one / "embeddings", "--log-dir", one / "textual_inversion")
    assert main([str(each) for each in (*same, *places)]) == 0
    process = start(*same, cwd=tmp_path, python=("-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "ti_trainer"))
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert out.count("  kept           trial ") == 1
    ours, theirs = (load_file(run_of(folder).path / "state.safetensors") for folder in (tmp_path, one))
    assert {"vectors.clip_l", "vectors.trial2.clip_l", "vectors.trial3.clip_l"} <= ours.keys() == theirs.keys()
    assert all(torch.equal(each, theirs[key]) for key, each in ours.items())
    tables = [(run_of(folder).path / "trials.csv").read_text(encoding="utf-8") for folder in (tmp_path, one)]
    assert tables[0] == tables[1]
