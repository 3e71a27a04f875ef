"""info and convert: which word a file is, what it is instead of an embedding, and what is not written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ti_trainer import formats, tiny_model
from ti_trainer.__main__ import main
from ti_trainer.embedding import Embedding


def info(capsys: pytest.CaptureFixture[str], file: object, *more: str) -> tuple[int, str]:
    code = main(["info", str(file), *more])
    return code, capsys.readouterr().out


def put(path: Path, name: str = "") -> Path:
    formats.write(Embedding(name or path.stem, {"clip_l": torch.ones(2, 768)}), path)
    return path


@pytest.mark.parametrize("name", ["embedded", tiny_model.MODEL])
def test_the_embedded_model_is_described(name: object, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = info(capsys, name)
    assert code == 0
    assert said.startswith(f"{name}: a checkpoint, embedded, epsilon")
    assert "clip_l 64" in said


def test_a_file_has_the_word_of_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = info(capsys, put(tmp_path / "cat.pt"))
    assert (code, said) == (0, f"{tmp_path / 'cat.pt'}: cat, SD 1.x, vectors clip_l 2 x 768, steps unknown\n")
    _, said = info(capsys, put(tmp_path / "learned_embeds.safetensors", "cat-toy"))
    assert "its name in prompts is the file's, learned_embeds, but the name stored in it is cat-toy" in said
    _, said = info(capsys, put(tmp_path / "card.png", "cat-toy"))
    assert "its name in prompts is the file's, card" in said
    assert "cat-toy (AUTOMATIC1111's WebUI uses that one)" in said
    put(tmp_path / "cat.safetensors")
    _, said = info(capsys, tmp_path / "cat.pt")
    assert "cat in a prompt means cat.safetensors, not this file" in said
    _, said = info(capsys, tmp_path / "learned_embeds.safetensors", "--json")
    assert (json.loads(said)["word"], json.loads(said)["name"]) == ("learned_embeds", "cat-toy")


def test_what_is_no_embedding_is_named_once_and_never_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"t5": torch.ones(2, 4096)}, tmp_path / "t5.safetensors")
    save_file({"clip_g": torch.ones(2, 1280)}, tmp_path / "half.safetensors")
    save_file({"down_blocks.0.to_q.lora_A.weight": torch.ones(2, 2)}, tmp_path / "lora.safetensors")
    save_file({"decoder.conv_in.weight": torch.ones(2, 2)}, tmp_path / "vae.safetensors")
    (tmp_path / "page.ckpt").write_bytes(b"<html>")
    for name, what in {"t5": "Flux", "half": "half of", "lora": "a LoRA", "vae": "a VAE", "page": "web page"}.items():
        file = next(tmp_path.glob(f"{name}.*"))
        code, said = info(capsys, file)
        assert code == 1
        assert said.count(what) == 1
        for ending in (".pt", ".bin" if name == "t5" else ".safetensors", ".png"):  # T5 is kept in .safetensors
            assert main(["convert", str(file), str(tmp_path / f"out{ending}")]) == 1
        assert not list(tmp_path.glob("out*"))


def test_exchanged_vectors_are_corrected_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"clip_g": torch.ones(2, 768), "clip_l": torch.ones(2, 1280)}, tmp_path / "a.safetensors")
    code, said = info(capsys, tmp_path / "a.safetensors")
    assert code == 0
    assert "SDXL, vectors clip_l 2 x 768, clip_g 2 x 1280" in said
    assert "swapped" in said
    assert main(["convert", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")]) == 0
    assert "swapped" in capsys.readouterr().out
    assert "swapped" not in info(capsys, tmp_path / "b.safetensors")[1]
