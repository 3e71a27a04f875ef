"""The header of a file says the same as the whole file, and damaged or hostile ones are refused cheaply."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ti_trainer import formats
from ti_trainer.errors import EmbeddingFormatError
from ti_trainer.formats.outline import Outline, outline

INTEROP = Path(__file__).parents[1] / "fixtures" / "interop"
FILES = sorted(
    each
    for each in (*INTEROP.iterdir(), INTEROP / "diffusers-sdxl" / "learned_embeds.safetensors")
    if each.suffix in (".pt", ".bin", ".safetensors", ".png", ".webp")
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_an_outline_says_what_the_file_says(path: Path) -> None:
    assert outline(path) == Outline.of(formats.read(path))


@pytest.mark.parametrize("family", ["SD 1.x", "SD 2.x", "SDXL", "embedded"])
def test_our_own_files_too(family: str, make, tmp_path: Path) -> None:
    for format in ("safetensors", "kohya", "onetrainer", "diffusers"):
        path = tmp_path / f"{format}.safetensors"
        formats.write(make(family), path, format)
        assert outline(path) == Outline.of(formats.read(path))


@pytest.mark.parametrize(
    "tensors",
    [
        {"t5": torch.ones(2, 4096)},
        {"clip_g": torch.ones(2, 1280)},
        {"a": torch.ones(2, 3, 4)},
        {"a": torch.ones(2, 768, dtype=torch.int32)},
        {"a": torch.ones(2, 768), "b": torch.ones(2, 768)},
    ],
)
def test_what_is_no_embedding_is_refused_as_when_it_is_read(tensors: dict, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(EmbeddingFormatError) as read:
        formats.read(tmp_path / "a.safetensors")
    with pytest.raises(EmbeddingFormatError) as outlined:
        outline(tmp_path / "a.safetensors")
    assert str(outlined.value) == str(read.value)


def test_a_header_that_promises_more_than_the_file_holds_costs_nothing(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1000, 2048], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    tracemalloc.start()
    with pytest.raises(EmbeddingFormatError, match="more numbers than"):
        outline(tmp_path / "a.safetensors")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
