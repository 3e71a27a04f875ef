"""The embedded model is small, opens as any Stable Diffusion 1.x does, and draws and learns what it is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from ti_trainer import tiny_model
from ti_trainer.config.training import TrainConfig
from ti_trainer.host import GenerationRequest, ModelOptions
from ti_trainer.hosts.diffusers.host import StandaloneHost
from ti_trainer.hosts.diffusers.model import DiffusersModel
from ti_trainer.tiny_model.making.evaluate_model import labelled_scene
from ti_trainer.tiny_model.making.make_diffusion import new_text_encoder, rescale
from ti_trainer.tiny_model.making.make_vae import psnr
from ti_trainer.tiny_model.making.measure_learning import colour_distance, measure
from ti_trainer.tiny_model.making.scenes import CONCEPTS, draw


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> StandaloneHost:
    folder = tmp_path_factory.mktemp("embedded")
    return StandaloneHost(embeddings_dir=folder / "embeddings", log_dir=folder / "logs")


@pytest.fixture(scope="module")
def model(host: StandaloneHost) -> DiffusersModel:
    return host.open_model(ModelOptions("fp32"))


def test_its_weights_are_half_precision_and_at_most_20_mb() -> None:
    weights = list(Path(tiny_model.MODEL).rglob("*.safetensors"))
    assert len(weights) == 3
    assert sum(path.stat().st_size for path in weights) <= 20_000_000


def test_a_stock_pipeline_opens_it() -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_model.MODEL, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.safety_checker is None
    image = pipeline("a red star on grass", num_inference_steps=2, height=64, width=64).images[0]
    assert image.size == (64, 64)


def test_the_autoencoder_loses_little(model: DiffusersModel) -> None:
    assert psnr(model.vae, 32) >= 28


def test_latents_have_the_scale_that_diffusion_expects(model: DiffusersModel) -> None:
    rng = np.random.default_rng(3)
    drawn = np.stack([np.asarray(draw(labelled_scene(rng)[0]), np.float32) for _ in range(64)])
    mean, std = model.encode_images(torch.from_numpy(drawn).permute(0, 3, 1, 2) / 127.5 - 1)
    assert mean.mean((0, 2, 3)).abs().max() < 0.25
    assert 0.8 < mean.std() < 1.2
    assert std.mean() < 0.2


def test_images_have_the_colours_of_their_prompts_and_not_of_others(model: DiffusersModel, host: StandaloneHost) -> None:
    rng = np.random.default_rng(11)
    scenes, prompts, _ = zip(*(labelled_scene(rng) for _ in range(8)), strict=True)
    drawn = [np.asarray(draw(scene)) / 255 for scene in scenes]
    made = [
        np.asarray(host.generate(model, GenerationRequest(prompt, steps=6, cfg_scale=4), {})) / 255 for prompt in prompts
    ]
    distances = np.array([[colour_distance(image, other) for other in drawn] for image in made])
    own = distances.argmin(1) == np.arange(8)
    assert own.sum() >= 7


def test_rescaling_the_text_encoder_changes_nothing_but_the_scale_of_its_tokens() -> None:
    torch.manual_seed(0)
    encoder = new_text_encoder().eval()
    torch.nn.init.normal_(encoder.get_input_embeddings().weight, std=0.5)
    ids = torch.tensor([[49406, 320, 736, 2368, *[49407] * 73]])
    with torch.no_grad():
        before = encoder(ids).last_hidden_state
        rescale(encoder, 0.01)
        after = encoder(ids).last_hidden_state
    assert encoder.get_input_embeddings().weight.std().item() == pytest.approx(0.01, rel=1e-4)
    assert torch.allclose(before, after, atol=1e-5)


def test_training_makes_its_images_more_like_the_concept(model: DiffusersModel, host: StandaloneHost) -> None:
    """Law 14, at default settings but for the steps: also nearer than random vectors, so that the measure can tell."""
    config = TrainConfig(max_steps=80, preview_every=0)
    found = measure(host, model, CONCEPTS[5], config, num_vectors=2, measured_with=2)
    assert found["loss"]["word"] < 0.85 * found["loss"]["init_text"]
    assert found["colour_distance"]["word"] < 0.8 * found["colour_distance"]["init_text"]
    assert found["colour_distance"]["random"] > found["colour_distance"]["word"] * 1.3
