"""Converting there and back through every format, and what becomes of a folder's files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ti_trainer import formats
from ti_trainer.embedding import Embedding
from ti_trainer.formats import FORMATS
from ti_trainer.workbench.convert import Wanted, convert, convert_folder

WIDTHS = {"SD 1.x": {"clip_l": 768}, "SD 2.x": {"clip_h": 1024}, "SDXL": {"clip_l": 768, "clip_g": 1280}}


def put(path: Path, family: str = "SD 1.x") -> Embedding:
    generator = torch.Generator().manual_seed(0)
    vectors = {encoder: torch.randn(2, width, generator=generator) for encoder, width in WIDTHS[family].items()}
    embedding = Embedding("my-cat", vectors, 500, "v1-5", "6ce0161689", {"init_text": "cat"})
    formats.write(embedding, path)
    return embedding


@pytest.mark.parametrize("family", WIDTHS)
@pytest.mark.parametrize("format", FORMATS)
def test_there_and_back_keeps_the_vectors_and_says_what_is_lost(format: str, family: str, tmp_path: Path) -> None:
    if (format, family) == ("webui", "SDXL"):
        pytest.skip("it holds one text encoder")
    embedding = put(tmp_path / "my-cat.safetensors", family)
    there = tmp_path / f"there/my-cat{FORMATS[format].extensions[0]}"
    notes = " ".join(convert(tmp_path / "my-cat.safetensors", there, Wanted(format)).notes)
    back = convert(there, tmp_path / "back.safetensors", Wanted())
    assert back.notes == ()
    again = formats.read(tmp_path / "back.safetensors")
    assert list(again.vectors) == list(embedding.vectors)
    assert all(torch.equal(each, embedding.vectors[encoder]) for encoder, each in again.vectors.items())
    for said, kept in (
        ("step 500", again.step == 500),
        ("checkpoint v1-5", again.checkpoint == "v1-5"),
        ("checkpoint hash 6ce0161689", again.checkpoint_hash == "6ce0161689"),
        ("details (init_text)", again.info.get("init_text") == "cat"),
    ):
        assert (said in notes) != kept


def test_a_folder_converted_onto_itself_keeps_its_files(tmp_path: Path) -> None:
    put(tmp_path / "a.safetensors")
    put(tmp_path / "b.pt")
    before = (tmp_path / "a.safetensors").read_bytes()
    found = {each.source.name: each.status for each in convert_folder(tmp_path, tmp_path, Wanted("onetrainer"))}
    assert found == {"a.safetensors": "skipped", "b.pt": "converted"}
    assert (tmp_path / "a.safetensors").read_bytes() == before
    found = {each.source.name: each.status for each in convert_folder(tmp_path, tmp_path, Wanted("kohya", overwrite=True))}
    assert found["a.safetensors"] == "converted"


def test_both_files_of_diffusers_are_one_embedding_in_a_folder(tmp_path: Path) -> None:
    put(tmp_path / "xl.safetensors", "SDXL")
    convert(tmp_path / "xl.safetensors", tmp_path / "pair/x.safetensors", Wanted("diffusers"))
    found = list(convert_folder(tmp_path / "pair", tmp_path / "out", Wanted()))
    assert [(each.source.name, each.status) for each in found] == [("x.safetensors", "converted")]
    assert formats.read(tmp_path / "out/x.safetensors").family == "SDXL"
