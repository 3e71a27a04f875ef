"""A word that DreamArtist's own extension for the WebUI trained: its negative is NAME-uc."""

from __future__ import annotations

from pathlib import Path

import torch

from ti_trainer import formats
from ti_trainer.config.training import TrainConfig
from ti_trainer.embedding import Embedding
from ti_trainer.runs.builders import load_embeddings
from ti_trainer.runs.start_notes import negative_mismatch


def test_its_negative_is_trained_into_a_file_of_our_name_and_that_is_said(tmp_path: Path) -> None:
    for name, value in (("da", 0.5), ("da-uc", 0.25)):
        formats.write(Embedding(name, {"clip_l": torch.full((2, 64), value)}, 7), tmp_path / f"{name}.pt")
    config = TrainConfig(negative=True)
    loaded = load_embeddings(tmp_path, config, "da")
    assert [(each.name, file.name) for each, file in loaded] == [("da", "da.pt"), ("da-neg", "da-neg.safetensors")]
    assert loaded[1][0].vectors["clip_l"][0, 0] == 0.25
    assert (
        negative_mismatch(tmp_path, config, "da", loaded) == "da-neg starts from DreamArtist's da-uc, which is not changed."
    )
    formats.write(*loaded[1])
    assert negative_mismatch(tmp_path, config, "da", load_embeddings(tmp_path, config, "da")) == ""
