"""Every family goes through create, train, preview, resume and load, as by the command line and the page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import families
import numpy as np
import pytest
import torch
from PIL import Image

from ti_trainer import formats
from ti_trainer.__main__ import main
from ti_trainer.config.training import TrainConfig
from ti_trainer.embedding import Embedding
from ti_trainer.errors import ConfigError
from ti_trainer.formats import embeddings_dir
from ti_trainer.hosts.diffusers.host import StandaloneHost
from ti_trainer.hosts.diffusers.loading import load
from ti_trainer.runs.run_folder import Run
from ti_trainer.runs.session import Session
from ti_trainer.training.vocabulary import Vocabulary

CONFIG = TrainConfig(
    max_steps=4,
    learning_rate="0.005",  # the same in a run that is extended
    preview_every=2,
    preview_sampling_steps=1,
    preview_negative_prompt="blurry",
    save_every=2,
    save_cards=True,
    use_alpha_weight=True,
    buckets=True,
    width=64,
    height=64,
)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two of one shape, one of another, and one with a mask of its own."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, (width, height, channels) in enumerate([(96, 64, 3), (96, 64, 3), (70, 64, 4), (64, 64, 3)]):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, channels), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("red, round", encoding="utf-8")
    return folder


# Each text encoder, prediction type and inpainting once: test_families.py has the gradients of all of them.
@pytest.mark.parametrize("family", ["sd1-inpainting", "sd2-v", "sdxl-inpainting"])
def test_an_embedding_is_created_trained_resumed_and_loaded(family: str, images: Path, tmp_path: Path) -> None:
    model = families.save(family, tmp_path / "model")
    host = StandaloneHost(str(model), "cpu", tmp_path / "embeddings", tmp_path / "log")
    whole, halves = (
        embeddings_dir.create(host.embeddings_dir, host.open_model(), name, "red star", 2) for name in ("one", "two")
    )
    before = {name: each.detach().clone() for name, each in host.open_model().unet.named_parameters()}
    result = Session(host, "one", images, CONFIG).train()
    quiet = replace(CONFIG, preview_every=0, evaluate_every=4)
    Session(host, "two", images, replace(quiet, max_steps=2)).train()
    resumed = Session(host, "two", images, quiet, resume=Run.latest(host.log_dir, "two")).train()

    learned, again = formats.read(whole), formats.read(halves)
    assert (learned.step, again.step) == (4, 4)
    for encoder, each in learned.vectors.items():
        start = formats.read(result.run.path / "embeddings" / "one-2.safetensors").vectors[encoder]
        assert not torch.equal(each, start), encoder
        assert torch.equal(each, again.vectors[encoder]), encoder
    assert all(torch.equal(each, before[name]) for name, each in host.open_model().unet.named_parameters())
    assert [step for step, _ in result.run.previews()] == [0, 2, 4]
    assert [step for step, _ in resumed.run.validation_losses()] == [0, 2, 4]
    cards = sorted(result.run.path.rglob("*-4.png"))
    assert any(_holds(card, learned) for card in cards)
    assert set(embeddings_dir.words(host.embeddings_dir, load(str(model), "cpu"))) == {"one", "two"}


def _holds(card: Path, embedding: Embedding) -> bool:
    try:
        found = formats.read(card)
    except formats.EmbeddingFormatError:
        return False
    return all(torch.equal(each, embedding.vectors[encoder]) for encoder, each in found.vectors.items())


def test_sphere_keeps_the_norms_of_both_text_encoders_of_sdxl(images: Path, tmp_path: Path) -> None:
    model = families.save("sdxl", tmp_path / "model")
    host = StandaloneHost(str(model), "cpu", tmp_path / "embeddings", tmp_path / "log")
    embeddings_dir.create(host.embeddings_dir, host.open_model(), "one", "red star", 2)
    config = replace(CONFIG, optimizer="sphere", learning_rate="auto", preview_every=0, save_every=2)
    result = Session(host, "one", images, config).train()
    usual = Vocabulary.of(host.open_model()).norms
    assert set(usual) == {"clip_l", "clip_g"}
    for encoder, each in result.embedding.vectors.items():
        assert each.norm(dim=1).tolist() == pytest.approx([usual[encoder]] * 2, rel=1e-5)
        start = formats.read(result.run.path / "embeddings" / "one-2.safetensors").vectors[encoder]
        assert not torch.allclose(each, start, rtol=1e-3), encoder


def test_an_embedding_of_another_family_is_refused_by_name(images: Path, tmp_path: Path) -> None:
    host = StandaloneHost(str(families.save("sdxl", tmp_path / "xl")), "cpu", tmp_path / "embeddings", tmp_path / "log")
    formats.write(Embedding("old", {"clip_l": torch.ones(2, 768)}), host.embeddings_dir / "old.safetensors")
    with pytest.raises(ConfigError, match=r"'old' is for SD 1\.x \(clip_l 768\), but xl is SDXL \("):
        Session(host, "old", images, CONFIG).check()


def test_training_of_an_sdxl_pt_file_continues_in_another_format(images: Path, tmp_path: Path) -> None:
    host = StandaloneHost(str(families.save("sdxl", tmp_path / "xl")), "cpu", tmp_path / "embeddings", tmp_path / "log")
    model = host.open_model()
    start = {name: torch.full((1, width), 0.01) for name, width in model.widths.items()}
    formats.write(Embedding("old", start), host.embeddings_dir / "old.pt", "kohya-pt")
    result = Session(host, "old", images, replace(CONFIG, max_steps=1, preview_every=0)).train()
    assert result.embedding_file == host.embeddings_dir / "old.safetensors"
    assert sorted(path.name for path in host.embeddings_dir.iterdir()) == ["old.pt.bak", "old.safetensors"]


def test_the_command_line_says_what_a_model_is(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(families.save("sdxl-v", tmp_path / "noob"))
    assert main(["info", model]) == 0
    said = "SDXL, v prediction, zero terminal SNR"
    assert f"{model}: a checkpoint, {said}, for images of 64 px" in capsys.readouterr().out
    places = ["--model", model, "--device", "cpu", "--embeddings-dir", str(tmp_path / "words")]
    assert main(["create", "zz-cat", *places]) == 0
    train = ["train", "zz-cat", "--images", str(images), "--max-steps", "1", "--preview-every", "0"]
    assert main([*train, *places, "--log-dir", str(tmp_path / "log")]) == 0
    assert f"Training on noob ({said})." in capsys.readouterr().out
    drawn = ["generate", "a zz-cat", "--steps", "1", *places]
    assert main([*drawn, "--out", str(tmp_path / "v.png")]) == 0
    epsilon = ["--prediction-type", "epsilon", "--zero-terminal-snr", "off"]
    assert main([*drawn, "--out", str(tmp_path / "e.png"), *epsilon]) == 0
    assert (tmp_path / "v.png").read_bytes() != (tmp_path / "e.png").read_bytes()
    assert main(["info", str(tmp_path / "noob" / "unet" / "diffusion_pytorch_model.safetensors")]) == 1
