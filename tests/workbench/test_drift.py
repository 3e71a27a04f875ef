"""How the copies of a run moved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ti_trainer.embedding import Embedding
from ti_trainer.runs.run_folder import Run
from ti_trainer.workbench.drift import drift_of


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run.create(tmp_path, "cat", {"name": "cat"})
    for step, angle in ((100, 0.0), (200, 0.5), (300, 1.0)):
        row = torch.tensor([[torch.cos(torch.tensor(angle)), torch.sin(torch.tensor(angle))]]) * step
        made.write_copy(Embedding("cat", {"clip_l": row.repeat(2, 1)}, step))
    return made


def test_similarity_to_the_first_copy_and_norm(run: Run) -> None:
    drift = drift_of(run)
    assert [value for _, value in drift.series("norm")["clip_l"]] == pytest.approx([100, 200, 300])
    assert [step for step, _ in drift.series("norm")["clip_l"]] == [100, 200, 300]
    assert [value for _, value in drift.series("similarity")["clip_l"]] == pytest.approx([1, 0.87758, 0.5403], abs=1e-4)
    assert (drift.skipped, drift.left_out) == ((), 0)


def test_what_cannot_be_compared_is_said(run: Run) -> None:
    run.write_copy(Embedding("cat", {"clip_l": torch.ones(3, 2)}, 400))
    (run.path / "embeddings" / "cat-500.safetensors").write_bytes(b"damaged")
    drift = drift_of(run)
    assert [each.step for each in drift.points] == [100, 200, 300]
    assert len(drift.skipped) == 2
    assert [each.step for each in drift_of(run, most=2).points] == [100]
    assert drift_of(run, most=2).left_out == 3


def test_a_run_without_copies_has_no_drift(tmp_path: Path) -> None:
    assert drift_of(Run.create(tmp_path, "cat", {"name": "cat"})).points == ()
