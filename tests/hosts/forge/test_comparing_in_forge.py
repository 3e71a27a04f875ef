"""A comparison in a stand-in of Forge: its own sampling knows each copy, and nothing of them stays in its database."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ti_trainer.embedding import Embedding
from ti_trainer.errors import ConfigError, TrainingError
from ti_trainer.host import GenerationRequest
from ti_trainer.workbench.candidates import Candidate
from ti_trainer.workbench.compare import STAND_IN, Comparison
from ti_trainer.workbench.comparison_run import run


def comparison(host: Any, widths: dict[str, int], *, negative: bool = False) -> Comparison:
    def embedding(step: int) -> Embedding:
        return Embedding("zz-cat", {name: torch.full((2, width), step / 100) for name, width in widths.items()}, step)

    candidates = [
        Candidate(f"step {step}", embedding(step), Path(f"zz-cat-{step}.safetensors"), embedding(step) if negative else None)
        for step in (1, 2)
    ]
    return Comparison(host, tuple(candidates), ("a [name]",), (1,), (1.0,), GenerationRequest("", steps=1))


@pytest.fixture
def host(ours: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The host with folders of its own, and a live preview."""
    monkeypatch.setattr(sys.modules["modules.shared"].state, "assign_current_image", lambda image: None, raising=False)
    for name in ("log_dir", "embeddings_dir"):
        monkeypatch.setattr(type(ours), name, tmp_path / name)
    return ours


def known(model: Any) -> list[str]:
    return [name for text in model.texts for name in text.stage.hijack.embedding_db.word_embeddings]


@pytest.mark.parametrize("kind", ["SD 1.x", "SDXL"])
def test_copies_are_known_while_their_images_are_generated_and_forgotten(forge: Any, host: Any, kind: str) -> None:
    forge.kind = kind
    with host.lock():
        widths = dict(host.open_model().widths)
    outcome = run(comparison(host, widths, negative=True))
    assert (outcome.made, outcome.grid.is_file()) == (2, True)
    for _, prompt, names, _ in forge.processed[-2:]:
        assert prompt == f"a {STAND_IN}"
        assert {name for each in names for name in each} == {STAND_IN, f"{STAND_IN}-neg"}
    with host.lock():
        assert known(host.open_model()) == []
    with pytest.raises(ConfigError, match="is for"):
        run(comparison(host, {"clip_l": 5}))


def test_a_failure_leaves_nothing_behind(forge: Any, host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with host.lock():
        widths = dict(host.open_model().widths)

    def fail(p: Any) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr("ti_trainer.hosts.webui.generation.process_images", fail)
    with pytest.raises(TrainingError, match="out of luck"):
        run(comparison(host, widths))
    with host.lock():
        assert known(host.open_model()) == []
