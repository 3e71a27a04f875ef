"""`library` lists the folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ti_trainer import formats
from ti_trainer.__main__ import main
from ti_trainer.embedding import Embedding


def test_the_folder_is_listed_for_people_and_scripts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("--embeddings-dir", str(tmp_path))
    assert main(["library", *where]) == 0
    assert "There are no embeddings" in capsys.readouterr().out
    for name, count in (("cat.pt", 1), ("pets/dog.safetensors", 3), ("cat.safetensors", 2)):
        formats.write(Embedding(Path(name).stem, {"clip_l": torch.ones(count, 768)}, 5), tmp_path / name)
    (tmp_path / "x.bin").write_bytes(b"")
    assert main(["library", "--sort", "vectors", *where]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "pets/dog.safetensors: SD 1.x, 3 vectors, 5 steps"
    assert "cat.pt: SD 1.x, 1 vector, 5 steps; cat in a prompt means cat.safetensors" in lines
    assert "is empty" in lines[-1]
    assert main(["library", "PETS", "--json", *where]) == 0
    assert json.loads(capsys.readouterr().out)["vectors"] == 3
