"""The README's command that judges the embedded model."""

from __future__ import annotations

import json

import pytest

from ti_trainer.tiny_model.making import evaluate_model


def test_it_prints_its_scores(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate_model.psnr
    monkeypatch.setattr(evaluate_model, "psnr", lambda vae: whole(vae, 16))
    evaluate_model.main(["--steps", "1", "--prompts", "1"])
    scores = json.loads(capsys.readouterr().out)
    assert set(scores) == {"drawings", "reconstructions", "generated", "prompts", "standard_error_at_most", "psnr_db"}
    assert set(scores["generated"]) == {"shape", "texture", "background", "colours"}
    assert scores["psnr_db"] > 25
