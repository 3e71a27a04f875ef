"""queue: runs are added, moved, removed and trained from a shell; the page changes the same file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("diffusers")  # the standalone host needs it; the WebUI does without

from ti_trainer.commands import PROGRAM, quick
from ti_trainer.runs.queue_entry import Entry
from ti_trainer.runs.queue_file import FILE, QueueFile
from ti_trainer.runs.run_folder import Run


def test_runs_are_added_changed_and_trained(
    cli: Callable, word: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quick, "CONFIG", replace(quick.CONFIG, max_steps=2, batch_size=1, preview_every=0))
    logs = tmp_path / "textual_inversion"
    file = QueueFile(logs / FILE)
    assert "is empty" in cli("queue").out
    flags = ("--preview-every", 0, "--csv-every", 1)
    added = cli("queue", "add", "thing", "--images", images, "--max-steps", 2, *flags)
    assert "Added to the queue: thing, number 1." in added.out, added.err
    for name in ("gone", "last"):
        start = ("--init-text", "star", "--model", "embedded", *flags)
        assert cli("queue", "add", name, "--images", images, "--max-steps", 3, *start).code == 0
    (tmp_path / "embeddings" / "gone.safetensors").unlink()
    refused = cli("queue", "add", "gone", "--images", images)
    assert refused.errors, "what cannot be trained now is refused now"
    assert "There is no model at" in cli("queue", "add", "thing", "--images", images, "--model", "/nowhere").errors[0]
    moved = cli("queue", "move", 3, 1)
    assert [line.split()[1] for line in moved.out.splitlines()] == ["last", "thing", "gone"]
    assert cli("queue", "add", "thing", "--images", images, "--max-steps", 9, *flags).code == 0
    assert "Removed: thing" in cli("queue", "remove", file.read()[3].id).out
    assert cli("queue", "remove", 4).errors == [
        "Error: RUN: found '4' and 3 runs in the queue, expected its number in the list, or its id; "
        f"`{PROGRAM} queue` lists them."
    ]
    assert "No further run is started." in cli("queue", "pause").out
    assert "is held" in cli("queue", "list").out
    trained = cli("queue", "run")
    assert (trained.code, file.held) == (1, False)
    assert "Failed: gone." in trained.err
    assert [run.settings()["name"] for run in reversed(Run.all(logs))] == ["last", "thing"], "in this order"
    listed = cli("queue").out
    assert "There is no embedding 'gone'" in listed
    assert "model embedded" in listed.splitlines()[0]
    (tmp_path / "embeddings" / "gone.safetensors").write_bytes(word.read_bytes())
    other = tmp_path / "models" / "other.safetensors"
    (wrong,) = cli("queue", "retry", 1, "--model", "models/other.safetensors").errors
    assert "There is no model at 'models/other.safetensors'" in wrong
    assert file.read()[0].state == "failed", "nothing was changed"
    other.parent.mkdir()
    other.touch()
    assert "Waits again: gone" in cli("queue", "retry", 1, "--model", "models/other.safetensors").out
    other.unlink()
    assert f"model {other}" in cli("queue").out
    start = ("--init-text", "star", *flags)
    assert cli("queue", "add", "again", "--images", images, "--max-steps", 2, *start).code == 0
    assert "Added to the queue: quickly, number 3." in cli("quick", "quickly", "--images", images, "--queue").out
    twice = cli("quick", "quickly", "--images", images, "--queue")
    assert twice.errors == ["Error: This run of 'quickly' is in the queue already: number 3."]
    assert cli("queue", "run").code == 1
    assert "There is no model at" in cli("queue").out, "each is trained with its model"
    assert [run.settings()["name"] for run in Run.all(logs)][:2] == ["quickly", "again"]
    assert cli("queue", "remove", 1, 1).code == 0
    assert "nothing to hold" in cli("queue", "pause").out
    file.append(Entry("a1", "\x1b[2Jx\ny", "/images", {}, "failed", "no\x07"))
    listed = "1. \\x1b[2Jx y (a1), failed, on /images, model not stored\n   no\\x07\n"
    assert cli("queue").out == listed, "an old file, and a hostile one"
    assert cli("queue", "remove", "a1").code == 0
    assert cli("queue", "run").errors == ["Error: No run waits in the queue: add one first."]
