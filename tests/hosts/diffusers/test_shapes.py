"""Models in full shape with random weights are of the shapes that were published, and work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import families
import pytest
import torch

from ti_trainer.hosts.diffusers import shapes
from ti_trainer.hosts.diffusers.loading import load
from ti_trainer.model import ImageConditioning, ModelSpec


@pytest.mark.parametrize(("shape", "parameters"), [("sd15", 859_520_964), ("sdxl", 2_567_463_684)])
def test_unets_have_as_many_parameters_as_the_published_ones(shape: str, parameters: int) -> None:
    with torch.device("meta"):
        unet = shapes.SHAPES[shape].unet()
    assert sum(each.numel() for each in unet.parameters()) == parameters


@pytest.mark.parametrize(("width", "layers", "parameters"), [(768, 12, 123_060_480), (1280, 32, 694_659_840)])
def test_text_encoders_have_too(width: int, layers: int, parameters: int) -> None:
    with torch.device("meta"):
        kind = shapes.CLIPTextModel if width == 768 else shapes.CLIPTextModelWithProjection
        encoder = kind(shapes.clip_config(width, layers, "gelu", 0))
    assert sum(each.numel() for each in encoder.parameters()) == parameters


def test_the_vae_has_too() -> None:
    with torch.device("meta"):
        assert sum(each.numel() for each in shapes.vae(0.18215).parameters()) == 83_653_863


def test_a_random_model_is_the_same_for_the_same_seed_works_and_can_be_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = replace(shapes.SHAPES["sd15"], unet=lambda: families.unet(4, 768, of_sd2=False))
    monkeypatch.setitem(shapes.SHAPES, "sd15", small)
    clip = shapes.clip_config
    monkeypatch.setattr(shapes, "clip_config", lambda width, layers, *rest: clip(width, 1, *rest))
    monkeypatch.setattr(shapes, "vae", lambda factor: families.vae("sd1"))
    model = shapes.random_model("sd15", "cpu", "fp32")
    assert (model.name, model.spec) == ("sd15-random", ModelSpec("SD 1.x"))
    state = torch.random.get_rng_state()
    again = shapes.random_model("sd15", "cpu", "fp32")
    assert torch.equal(state, torch.random.get_rng_state())
    for one, other in zip(model.modules, again.modules, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    with torch.no_grad():
        mean, std = model.encode_images(torch.rand(1, 3, 64, 64) * 2 - 1)
        cond = model.encode_prompts(["a star"], {})
        made = model.predict(mean, torch.tensor([500]), cond, ImageConditioning(torch.zeros(1, 6)))
    assert made.isfinite().all()
    assert made.std() > 1e-3
    assert (std > 0).all()
    shapes.save(model, tmp_path / "saved")
    read = load(str(tmp_path / "saved"), "cpu")
    for one, other in zip(model.modules, read.modules, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
