"""The code that made the embedded model still makes one that opens, and continues after an interruption."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from transformers import CLIPTokenizer

from ti_trainer import tiny_model
from ti_trainer.hosts.diffusers.loading import load
from ti_trainer.tiny_model.making import make, make_diffusion, make_vae
from ti_trainer.tiny_model.making.make_vae import images, psnr


def test_a_model_is_made_from_nothing_and_again_from_its_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tokenizer(folder: Path) -> CLIPTokenizer:  # CLIP's vocabulary comes with a package that tests do not install
        shutil.copytree(tiny_model.MODEL / "tokenizer", folder, dirs_exist_ok=True)
        return CLIPTokenizer.from_pretrained(folder)

    monkeypatch.setattr(make, "make_tokenizer", tokenizer)
    monkeypatch.setattr(make_vae, "psnr", lambda vae: psnr(vae, 4))  # only printed
    monkeypatch.setattr(make_diffusion, "images", lambda count, rng: images(count // 16, rng))  # to measure latents with
    made = []
    for _ in range(2):
        make.make(tmp_path / "work", tmp_path / "model", 0.01, 0.01, 0.01, images=8)
        model = load(str(tmp_path / "model"), "cpu")
        assert model.widths == {"clip_l": 64}
        assert model.token_embeddings("star")["clip_l"].std() < 0.02
        assert 0.8 < model.encode_images(images(32, np.random.default_rng(3)))[0].std() < 1.2
        made.append((tmp_path / "work" / "vae.pt").stat().st_mtime_ns)
    assert made[0] == made[1]


def test_the_demo_is_what_the_code_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "DEMO", tmp_path)
    make.make_demo()
    drawn, shipped = (
        {path.name: path.read_bytes() for path in folder.glob("*.txt")} for folder in (tmp_path, tiny_model.DEMO)
    )
    assert drawn == shipped
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in tiny_model.DEMO.iterdir())
