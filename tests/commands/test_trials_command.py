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

TRIALS = (
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
    *("--preview-every", 5, "--preview-sampling-steps", 1, "--save-every", 5, "--evaluate-every", 5, "--csv-every", 5),
)


def run_of(folder: Path) -> Run:
    """The only one."""
    (path,) = folder.glob("textual_inversion/*/*")
    return Run(path)


def test_train_keeps_the_best_of_three_and_reports_it(cli: Callable, images: Path, word: Path, tmp_path: Path) -> None:
    outcome = cli("train", "thing", "--images", images, "--max-steps", 10, *TRIALS)
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
    copy = formats.read(folder.path / "embeddings" / f"thing-trial{best['number']}-10.safetensors")
    assert torch.equal(kept.vectors["clip_l"], copy.vectors["clip_l"])
    assert (kept.step, kept.num_vectors) == (10, int(best["num_vectors"]))
    assert [step for step, _ in folder.previews()] == [0, 5, 10]
    assert len(folder.validation_losses()) == 3
    assert folder.settings()["train"]["trials"] == 3

    told = cli("evaluate", "thing", "--images", images, "--json")
    losses = json.loads(told.out)["loss"]
    assert losses["word"] > 0

    refused = cli("train", "thing", "--images", images, "--max-steps", 20, *TRIALS)
    assert refused.code == 1
    assert "has been trained for 10 steps already" in refused.err
    stopped = cli("train", "thing", "--images", images, "--max-steps", 12, "--resume")
    assert stopped.code == 0, stopped.err
    assert formats.read(word).step == 12


def test_two_processes_compute_what_one_does(pair: Callable, images: Path, word: Path, tmp_path: Path) -> None:
    same = ("--images", images, *TRIALS, "--gradient-accumulation-steps", 2, "--max-steps", 4)
    one = tmp_path / "one"
    (one / "embeddings").mkdir(parents=True)
    (one / "embeddings" / word.name).write_bytes(word.read_bytes())
    places = ("--embeddings-dir", one / "embeddings", "--log-dir", one / "textual_inversion")
    assert main([str(each) for each in ("train", "thing", *same, *places)]) == 0
    processes = pair(*same)
    (out, err), other = (process.communicate(timeout=200) for process in processes)
    assert [process.returncode for process in processes] == [0, 0], (err, other)
    assert out.count("  kept           trial ") == 1
    ours, theirs = (load_file(run_of(folder).path / "state.safetensors") for folder in (tmp_path, one))
    assert {"vectors.clip_l", "vectors.trial2.clip_l", "vectors.trial3.clip_l"} <= ours.keys() == theirs.keys()
    assert all(torch.equal(each, theirs[key]) for key, each in ours.items())
    tables = [(run_of(folder).path / "trials.csv").read_text(encoding="utf-8") for folder in (tmp_path, one)]
    assert tables[0] == tables[1]
