"""The adapter and the sampler compute what the diffusers library's own pipeline does, and give back what they borrow."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline
from PIL import Image

from ti_trainer import tiny_model
from ti_trainer.host import GenerationRequest, ModelOptions
from ti_trainer.hosts.diffusers import sampling
from ti_trainer.hosts.diffusers.host import StandaloneHost
from ti_trainer.hosts.diffusers.loading import load
from ti_trainer.hosts.diffusers.model import DiffusersModel
from ti_trainer.model import ImageConditioning

NO_IMAGES = ImageConditioning(torch.zeros(0, 6))  # SD 1.x looks at text alone
PROMPT = "a photo of a big red star on grass"


@pytest.fixture(scope="module")
def pipeline(model: DiffusersModel) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=model.vae,
        text_encoder=model.text_encoders[0].module,
        tokenizer=model.text_encoders[0].tokenizer,
        unet=model.unet,
        scheduler=DDPMScheduler.from_pretrained(tiny_model.MODEL / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(autouse=True)
def rng_untouched() -> Iterator[None]:
    """What is random here is nobody else's."""
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    yield
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_images_are_encoded_as_the_vae_does(model: DiffusersModel) -> None:
    pixels = noise(2, 3, 64, 48).clamp(-1, 1)
    mean, std = model.encode_images(pixels)
    with torch.no_grad():
        wanted = model.vae.encode(pixels).latent_dist
    assert torch.equal(mean, wanted.mean * 0.18215)
    assert torch.equal(std, wanted.std * 0.18215)
    assert mean.shape == (2, 4, 8, 6)
    assert not mean.requires_grad


def test_latents_are_decoded_as_the_vae_does_with_gradient(model: DiffusersModel) -> None:
    latents = noise(1, 4, 8, 8).requires_grad_()
    pixels = model.decode(latents)
    assert torch.equal(pixels, model.vae.decode(latents / 0.18215).sample)
    pixels.mean().backward()
    assert latents.grad.abs().sum() > 0
    model.vae.zero_grad()


def test_prompts_and_predictions_are_the_pipelines(model: DiffusersModel, pipeline: StableDiffusionPipeline) -> None:
    latents, timesteps = noise(2, 4, 8, 8), torch.tensor([10, 800])
    with torch.no_grad():
        wanted, _ = pipeline.encode_prompt([PROMPT, ""], "cpu", 1, do_classifier_free_guidance=False)
        cond = model.encode_prompts([PROMPT, ""], {})
        torch.testing.assert_close(cond.hidden, wanted, rtol=0, atol=1e-5)
        output = pipeline.unet(latents, timesteps, encoder_hidden_states=wanted).sample
        torch.testing.assert_close(model.predict(latents, timesteps, cond, NO_IMAGES), output, rtol=0, atol=1e-5)


def test_clip_skip_stops_before_the_last_layers(model: DiffusersModel) -> None:
    skipping, encoder = load("embedded", "cpu", ModelOptions(clip_skip=2)), model.text_encoders[0]
    ids = encoder.tokenizer(PROMPT, padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        states = encoder.module(ids, output_hidden_states=True).hidden_states
        wanted = torch.nn.functional.layer_norm(
            states[-2], (64,), encoder._final_norm.weight, encoder._final_norm.bias, encoder._final_norm.eps
        )
        hidden = skipping.encode_prompts([PROMPT], {}).hidden
    torch.testing.assert_close(hidden, wanted, rtol=0, atol=1e-5)


def test_vectors_of_words_are_the_tokens_they_are(model: DiffusersModel) -> None:
    """A word with the vectors of 'red star' says what 'red star' says."""
    words = {"thing": model.token_embeddings("red star"), "unused": {"clip_l": noise(1, 64)}}
    with torch.no_grad():
        spliced = model.encode_prompts(["a big thing on grass", "thing"], words).hidden
        wanted = model.encode_prompts(["a big red star on grass", "red star"], {}).hidden
    assert torch.equal(spliced, wanted)


def test_gradients_reach_the_vectors_and_nothing_else(model: DiffusersModel) -> None:
    vectors = noise(2, 64).mul(0.02).requires_grad_()
    words = {"thing": {"clip_l": vectors}}
    with model.training():
        cond = model.encode_prompts(["a thing", "thing, thing", "nothing of it"], words)
        model.predict(noise(3, 4, 8, 8), torch.tensor([1, 500, 999]), cond, NO_IMAGES).square().mean().backward()
    assert vectors.grad.abs().sum(dim=1).min() > 0
    modules = (model.unet, model.vae, model.text_encoders[0].module)
    assert all(each.grad is None for module in modules for each in module.parameters())
    assert not model.text_encoders[0].module.get_input_embeddings()._forward_hooks


def test_prompts_of_different_lengths_are_filled_up_alone(model: DiffusersModel) -> None:
    long = ", ".join(["a red star on grass"] * 20)
    with torch.no_grad():
        both = model.encode_prompts([long, PROMPT], {}).hidden
        assert both.shape[1] % 77 == 0
        assert both.shape[1] > 77
        torch.testing.assert_close(both[:1], model.encode_prompts([long], {}).hidden, rtol=0, atol=1e-5)
        torch.testing.assert_close(both[1:, :77], model.encode_prompts([PROMPT], {}).hidden, rtol=0, atol=1e-5)
        torch.testing.assert_close(both[1:, 77:154], model.encode_prompts([""], {}).hidden, rtol=0, atol=1e-5)


def test_all_is_as_before_after_training_even_if_it_fails() -> None:
    model = load("embedded", "cpu")
    model.unet.train()
    frozen = next(model.vae.parameters()).requires_grad_(False)
    modules = (model.unet, model.vae, model.text_encoders[0].module)
    before = [(each.requires_grad, each.detach().clone()) for module in modules for each in module.parameters()]
    modes = [each.training for module in modules for each in module.modules()]

    def fail() -> None:
        with model.training():
            assert not any(each.requires_grad for module in modules for each in module.parameters())
            assert not any(module.training for module in modules)
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fail()
    after = [(each.requires_grad, each.detach()) for module in modules for each in module.parameters()]
    assert [each for each, _ in after] == [each for each, _ in before]
    assert all(torch.equal(one, other) for (_, one), (_, other) in zip(before, after, strict=True))
    assert [each.training for module in modules for each in module.modules()] == modes
    assert not frozen.requires_grad


def test_a_word_that_does_not_fit_leaves_no_hook_behind(model: DiffusersModel) -> None:
    with pytest.raises(RuntimeError):
        model.encode_prompts(["thing"], {"thing": {"clip_l": noise(1, 768)}})
    assert not model.text_encoders[0].module.get_input_embeddings()._forward_hooks


@pytest.mark.parametrize(("width", "height", "cfg_scale"), [(0, 0, 7.0), (64, 80, 3.0)])
def test_images_are_the_pipelines(
    width: int,
    height: int,
    cfg_scale: float,
    model: DiffusersModel,
    pipeline: StableDiffusionPipeline,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoded: list[torch.Tensor] = []
    decode = model.decode
    monkeypatch.setattr(model, "decode", lambda latents: decoded.append(decode(latents)) or decoded[0])
    drawing = GenerationRequest(PROMPT, "a blue circle", 6, cfg_scale, 5, width, height)
    image = StandaloneHost().generate(model, drawing, {})
    monkeypatch.undo()

    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
        DDPMScheduler.load_config(tiny_model.MODEL / "scheduler"),
        algorithm_type="dpmsolver++",
        solver_order=2,
        final_sigmas_type="sigma_min",
        timestep_spacing="trailing",
    )
    latents = noise(1, 4, (height or 64) // 8, (width or 64) // 8, seed=5)
    pipeline.set_progress_bar_config(disable=True)
    wanted = pipeline(
        PROMPT,
        negative_prompt="a blue circle",
        num_inference_steps=6,
        guidance_scale=cfg_scale,
        latents=latents,
        height=height or 64,
        width=width or 64,
        output_type="np",
    ).images[0]
    pixels = (decoded[0][0] / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy()
    assert np.abs(pixels - wanted).max() < 1e-4
    assert np.abs(np.asarray(image) / 255 - wanted).max() < 0.5 / 255 + 1e-4
    assert wanted.std() > 0.01, "an image of one colour would compare nothing"


def test_the_same_drawing_is_the_same_image_whatever_went_before(model: DiffusersModel) -> None:
    words = {"thing": {"clip_l": noise(2, 64)}}

    def drawn(**rest: object) -> Image.Image:
        return sampling.generate(model, GenerationRequest(**{"prompt": "a thing", "steps": 3, **rest}), words)

    first = drawn()
    drawn(seed=9)
    assert first.tobytes() == drawn().tobytes()
    assert first.tobytes() != drawn(seed=9).tobytes()
    assert first.tobytes() != drawn(prompt="a star").tobytes()
    assert first.tobytes() != drawn(negative_prompt="a star").tobytes()
    assert drawn(steps=1).size == (64, 64)
    assert drawn(prompt=", ".join(["a red thing on grass"] * 20)).size == (64, 64)


def test_drawing_leaves_no_gradient(model: DiffusersModel) -> None:
    vectors = noise(2, 64).requires_grad_()
    sampling.generate(model, GenerationRequest("thing", steps=1), {"thing": {"clip_l": vectors}})
    assert vectors.grad is None


def test_the_checkpoints_hash_is_read_only_when_asked_for() -> None:
    """A checkpoint has gigabytes, and drawing with it needs no hash."""
    model = load("embedded", "cpu")
    assert "checkpoint_hash" not in vars(model)
    assert model.checkpoint_hash == hashlib.sha256(model.weights.read_bytes()).hexdigest()[:10]
