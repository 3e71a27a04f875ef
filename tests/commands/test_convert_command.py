"""convert: what a format cannot hold is said, folders, LoRAs; info shows what is in a LoRA."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ti_trainer import formats
from ti_trainer.embedding import Embedding

Cli = Callable[..., Any]


def put(path: Path, step: int = 500, **rest: Any) -> Path:
    vectors = {"clip_l": torch.linspace(-1, 1, 2 * 768).reshape(2, 768)}
    formats.write(Embedding("my-cat", vectors, step, "v1-5", "6ce0161689", **rest), path)
    return path


def put_lora(path: Path, **words: torch.Tensor) -> Path:
    named = {f"bundle_emb.{name}.clip_l": each for name, each in words.items()}
    save_file({"lora_te_a.lora_up.weight": torch.ones(3, 2), **named}, path, {"ss_note": "kept"})
    return path


@pytest.mark.parametrize(
    ("target", "format", "said"),
    [
        ("a.pt", "webui", "cannot hold: details (init_text)."),
        (
            "a.safetensors",
            "kohya",
            "cannot hold: step 500, checkpoint v1-5, checkpoint hash 6ce0161689, details (init_text).",
        ),
        ("a.safetensors", "kohya", "The name my-cat is not stored: in prompts it is the file's, a."),
        ("a.bin", "diffusers-bin", "cannot hold: step 500,"),
        ("a.safetensors", None, ""),
    ],
)
def test_what_a_format_cannot_hold_is_said(cli: Cli, tmp_path: Path, target: str, format: str, said: str) -> None:
    source = put(tmp_path / "my-cat.safetensors", info={"init_text": "cat"})
    outcome = cli("convert", source, tmp_path / target, *(("--format", format) if format else ()))
    assert outcome.code == 0
    assert said in outcome.out
    if not said:
        assert outcome.out.count("\n") == 1


def test_rounding_and_the_other_half_of_a_card_are_said(cli: Cli, tmp_path: Path) -> None:
    source = put(tmp_path / "my-cat.pt")
    outcome = cli("convert", source, tmp_path / "half.safetensors", "--dtype", "fp16", "--name", "half")
    assert "fp16: " in outcome.out
    assert "numbers were rounded, by at most 0.000" in outcome.out
    assert load_file(tmp_path / "half.safetensors")["emb_params"].dtype == torch.float16
    assert formats.read(tmp_path / "half.safetensors").name == "half"
    card = tmp_path / "card.png"
    from PIL import Image

    negative = Embedding("my-cat-neg", {"clip_l": torch.ones(3, 768)})
    formats.write_card(Image.new("RGB", (64, 64)), formats.read(source), card, negative=negative)
    assert (
        "The negative embedding in card.png, my-cat-neg, was not converted." in cli("convert", card, tmp_path / "c.pt").out
    )


def test_existing_files_stay_unless_told(cli: Cli, tmp_path: Path) -> None:
    source, target = put(tmp_path / "my-cat.pt"), tmp_path / "b.safetensors"
    target.write_bytes(b"mine")
    outcome = cli("convert", source, target)
    assert outcome.code == 1
    assert "exists: choose another name, or overwrite it (--overwrite)." in outcome.errors[0]
    assert target.read_bytes() == b"mine"
    assert cli("convert", source, target, "--overwrite").code == 0
    assert "is a folder; expected the name of a file" in cli("convert", source, tmp_path).errors[0]
    assert "There is no file missing.pt" in cli("convert", "missing.pt", tmp_path).errors[0]
    xl = Embedding("xl", {"clip_l": torch.ones(1, 768), "clip_g": torch.ones(1, 1280)})
    formats.write(xl, tmp_path / "xl.safetensors")
    (tmp_path / "new_2.safetensors").write_bytes(b"mine")
    outcome = cli("convert", tmp_path / "xl.safetensors", tmp_path / "new.safetensors", "--format", "diffusers")
    assert outcome.code == 1
    assert "new_2.safetensors exists" in outcome.errors[0]
    assert (tmp_path / "new_2.safetensors").read_bytes() == b"mine"


def test_a_folder_is_converted_file_by_file(cli: Cli, tmp_path: Path) -> None:
    folder, into = tmp_path / "in", tmp_path / "out"
    put(folder / "a.pt")
    put(folder / "a.bin")
    put(folder / "sub" / "b.safetensors")
    put(folder / "there.pt")
    (folder / "broken.pt").write_bytes(b"<html>")
    put_lora(folder / "lora.safetensors", word=torch.ones(1, 768))
    from PIL import Image

    for name in ("a.png", "broken.png"):
        Image.new("RGB", (8, 8)).save(folder / name)
    into.mkdir()
    (into / "there.safetensors").write_bytes(b"mine")
    outcome = cli("convert", folder, into, "--format", "kohya", "--dtype", "bf16")
    assert outcome.code == 1, "one failed"
    assert outcome.out.splitlines()[-1] == "2 converted, 5 skipped, 1 failed."
    assert outcome.out.count("cannot hold: step 500") == 2
    assert "there.safetensors exists" in outcome.out
    assert "a.pt has the same name and was converted" in outcome.out
    assert "an image without an embedding" in outcome.out
    assert "lora.safetensors is a LoRA with embeddings in it (word)" in outcome.out
    assert any("broken.pt" in each and "web page" in each for each in outcome.err.splitlines())
    assert {path.relative_to(into).as_posix() for path in into.rglob("*.*")} == {
        "a.safetensors", "there.safetensors", "sub/b.safetensors"
    }  # fmt: skip
    assert (into / "there.safetensors").read_bytes() == b"mine"
    assert cli("convert", folder, into, "--name", "x").code == 1
    assert cli("convert", tmp_path / "in/sub", tmp_path / "fine").code == 0


def test_a_folder_of_diffusers_is_one_embedding(cli: Cli, tmp_path: Path) -> None:
    put(tmp_path / "trained" / "learned_embeds.safetensors")
    assert "Wrote" in cli("convert", tmp_path / "trained", tmp_path / "one.pt").out


def test_out_of_a_lora_and_into_one(cli: Cli, tmp_path: Path) -> None:
    lora = put_lora(tmp_path / "lora.safetensors", word=torch.ones(2, 768))
    outcome = cli("info", lora)
    assert (outcome.code, outcome.out) == (0, f"{lora}: a LoRA with embeddings in it: word, vectors clip_l 2 x 768\n")
    assert json.loads(cli("info", lora, "--json").out)["bundled"] == {"word": {"clip_l": [2, 768]}}
    outcome = cli("convert", lora, tmp_path / "word.pt")
    assert outcome.code == 1
    assert "(word): say which of them to take out (--bundled NAME)." in outcome.errors[0]
    assert cli("convert", lora, tmp_path / "word.pt", "--bundled", "word").code == 0
    assert formats.read(tmp_path / "word.pt").name == "word"
    new = tmp_path / "new.safetensors"
    outcome = cli("convert", put(tmp_path / "my-cat.safetensors"), new, "--into", lora)
    assert outcome.code == 0
    assert "A LoRA cannot hold: step 500, checkpoint v1-5." in outcome.out
    assert "also has word in it" in outcome.out
    assert set(load_file(new)) == {*load_file(lora), "bundle_emb.my-cat.clip_l"}
    outcome = cli("convert", tmp_path / "word.pt", tmp_path / "x.safetensors", "--into", lora)
    assert "has an embedding 'word' in it already: choose another name, or overwrite it (--overwrite)." in outcome.errors[0]
    assert cli("convert", tmp_path / "word.pt", tmp_path / "x.pt", "--into", lora).code == 1
    xl = Embedding("xl", {"clip_l": torch.ones(1, 768), "clip_g": torch.ones(1, 1280)})
    formats.write(xl, tmp_path / "xl.safetensors")
    assert (
        "seems to be for SD 1.x or SD 2.x, the embedding for SDXL"
        in cli("convert", tmp_path / "xl.safetensors", tmp_path / "y.safetensors", "--into", lora).out
    )


def test_flux_embeddings_are_exchanged(cli: Cli, tmp_path: Path) -> None:
    save_file({"clip_l": torch.ones(2, 768), "t5": torch.ones(2, 4096)}, tmp_path / "flux.safetensors")
    assert cli("convert", tmp_path / "flux.safetensors", tmp_path / "comfy.safetensors").out.endswith("2 vectors, Flux.\n")
    assert set(load_file(tmp_path / "comfy.safetensors")) == {"clip_l", "t5xxl"}
    assert "which the format webui cannot hold" in cli("convert", tmp_path / "flux.safetensors", tmp_path / "a.pt").errors[0]
    assert "not supported here" in cli("info", tmp_path / "flux.safetensors").out
