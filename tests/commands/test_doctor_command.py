"""doctor: a report for issues, also useful where there is no GPU."""

from __future__ import annotations

import pytest
import torch

from ti_trainer import workbench
from ti_trainer.benchmark import diagnosis
from ti_trainer.errors import ModelError


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_report_says_that_there_is_no_gpu_and_what_works_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workbench.diagnosis, "STEPS", 1)
    monkeypatch.setattr(workbench.diagnosis, "STEPS_OF_PRECISION", 2)
    lines = list(diagnosis.report("embedded", None, "cpu", 64))
    text = "\n".join(lines)
    assert f"torch {torch.__version__}" in text
    assert "There is no GPU" in text
    assert "model: embedded (embedded, epsilon prediction), 64 px, batch size 1, float32" in lines
    measured = {line.split()[0]: line for line in lines if line.startswith("  ")}
    assert set(measured) == {"none", "checkpointing", "fp16", "bf16", "fp32"}
    assert "ms a step" in measured["checkpointing"]
    assert measured["fp16"].startswith("  fp16          failed: Precision fp16 needs a CUDA device")
    assert "finite, loss 0." in measured["bf16"]
    assert "moved" not in text
    assert "torch.compile: not tried" in text
    assert "/" not in text.replace("ti-trainer/", ""), "no folder is named"


def test_a_model_that_cannot_be_opened_is_an_error() -> None:
    with pytest.raises(ModelError):
        list(diagnosis.report("nowhere", None, "cpu", 64))
