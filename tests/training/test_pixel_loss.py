"""Losses of pixels: the estimate of the clean image, the reconstruction, a classifier, and their gradients."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import TinyHost, TinyModel
from torch import Tensor, nn

from ti_trainer.config.training import TrainConfig
from ti_trainer.data.dataset import Batch
from ti_trainer.errors import ConfigError
from ti_trainer.formats import embeddings_dir
from ti_trainer.functional.guidance import GuidanceScale
from ti_trainer.functional.objective import add_noise, clean_latents, target
from ti_trainer.model import ImageConditioning, ModelSpec
from ti_trainer.runs.session import Session
from ti_trainer.training import discriminator, pixel_loss
from ti_trainer.training.pixel_loss import PixelLoss, latent_pixels_at_once
from ti_trainer.training.step import training_loss

SCALE = GuidanceScale(3, 3)
CPU = torch.device("cpu")


def batch(count: int = 3, weight: Tensor | None = None) -> Batch:
    generator = torch.Generator().manual_seed(1)
    shape = (count, 4, 2, 3)
    return Batch(
        torch.randn(shape, generator=generator),
        torch.randn(shape, generator=generator),
        torch.tensor([5, 60, 90, 20, 70, 33][:count]),
        tuple(f"a x-word {number}" for number in range(count)),
        weight,
        ImageConditioning(torch.zeros(count, 6)),
        tuple(f"a x-word-neg {number}" for number in range(count)),
        torch.randint(0, 256, (count, 3, 16, 24), generator=generator, dtype=torch.uint8),
    )


def words() -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: {"clip_l": (torch.randn(count, 8, generator=generator) * 0.3).requires_grad_()}
        for name, count in (("x-word", 2), ("x-word-neg", 3))
    }


class Model(TinyModel):
    """One whose decoder is not linear, of either kind of prediction."""

    def __init__(self, prediction_type: str = "epsilon") -> None:
        super().__init__()
        self.spec = ModelSpec("tiny", prediction_type)

    def decode(self, latents: Tensor) -> Tensor:
        return super().decode(latents * 0.5).tanh()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_network_that_predicts_rightly_estimates_the_clean_image(prediction_type: str) -> None:
    given, alphas = batch(), torch.tensor([0.99, 0.5, 0.02])
    noisy = add_noise(given.latents, given.noise, alphas)
    right = target(given.latents, given.noise, alphas, prediction_type)
    torch.testing.assert_close(clean_latents(noisy, right, alphas, prediction_type), given.latents)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("masked", [False, True])
def test_the_loss_is_that_of_an_independent_evaluation(prediction_type: str, masked: bool) -> None:
    """DreamArtist's formula, written down once more with numpy."""
    model = Model(prediction_type)
    weight = torch.linspace(0, 2, 18).view(3, 1, 2, 3) if masked else None
    given, both = batch(weight=weight), words()
    found = training_loss(model, given, both, SCALE, PixelLoss(0.7)).detach().numpy()

    alpha = model.alphas_cumprod[given.timesteps].numpy().astype(np.float64)[:, None, None, None]
    latents, noise = given.latents.numpy().astype(np.float64), given.noise.numpy().astype(np.float64)
    noisy = np.sqrt(alpha) * latents + np.sqrt(1 - alpha) * noise

    def predicted(prompts: tuple[str, ...]) -> np.ndarray:
        with torch.no_grad():
            cond = model.encode_prompts(prompts, both)
            told = model.predict(torch.from_numpy(noisy).float(), given.timesteps, cond, given.images)
        return told.numpy().astype(np.float64)

    unwanted, wanted = predicted(given.negative_prompts), predicted(given.prompts)
    guided = unwanted + 3 * (wanted - unwanted)
    if prediction_type == "epsilon":
        goal, clean = noise, (noisy - np.sqrt(1 - alpha) * guided) / np.sqrt(alpha)
    else:
        goal = np.sqrt(alpha) * noise - np.sqrt(1 - alpha) * latents
        clean = np.sqrt(alpha) * noisy - np.sqrt(1 - alpha) * guided
    decoded = np.tanh(0.5 * clean[:, :3].repeat(8, axis=2).repeat(8, axis=3))
    counts = np.ones((3, 1, 2, 3)) if weight is None else weight.numpy()
    squared = (counts * (guided - goal) ** 2).mean(axis=(1, 2, 3))
    absolute = np.abs(decoded - (given.pixels.numpy() / 127.5 - 1)) * counts.repeat(8, axis=2).repeat(8, axis=3)
    np.testing.assert_allclose(found, squared + 0.7 * absolute.mean(axis=(1, 2, 3)), rtol=1e-5)


def gradients(loss: Tensor, both: dict[str, dict[str, Tensor]]) -> list[Tensor]:
    return list(torch.autograd.grad(loss.sum(), [each["clip_l"] for each in both.values()]))


@pytest.mark.parametrize("at_once", [6, 12, 4096])
def test_gradients_are_those_of_one_graph_however_many_images_are_decoded_at_once(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixel_loss, "LATENT_PIXELS_AT_ONCE", at_once)
    model, given, both = Model(), batch(), words()
    others = ((0.4, lambda images: images.square().mean(dim=(1, 2, 3))),)
    found = gradients(training_loss(model, given, both, SCALE, PixelLoss(0.7, others)) * torch.tensor([1.0, 2.0, 3.0]), both)

    class InOneGraph(PixelLoss):
        def __call__(self, model: TinyModel, estimate: Tensor, given: Batch) -> Tensor:
            return self._of(model.decode(estimate), given, slice(0, 3))

    wanted = training_loss(model, given, both, SCALE, InOneGraph(0.7, others)) * torch.tensor([1.0, 2.0, 3.0])
    for one, other in zip(found, gradients(wanted, both), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)


def test_the_decoder_is_given_back_after_each_batch_and_never_sees_more_images_than_fit() -> None:
    seen, open_now = [], []

    class Watched(Model):
        def decode(self, latents: Tensor) -> Tensor:
            seen.append(len(latents))
            assert open_now == [True]
            return super().decode(latents)

        def decoding(self) -> object:
            open_now.append(True)
            decoding = super().decoding()

            class Closing:
                def __enter__(self) -> object:
                    return decoding.__enter__()

                def __exit__(self, *error: object) -> object:
                    open_now.pop()
                    return decoding.__exit__(*error)

            return Closing()

    given = replace(batch(6), latents=torch.zeros(6, 4, 40, 40), noise=torch.zeros(6, 4, 40, 40))
    given = replace(given, pixels=torch.zeros(6, 3, 320, 320, dtype=torch.uint8))
    training_loss(Watched(), given, words(), None, PixelLoss(1.0)).sum().backward()
    assert seen == [2, 2, 2]
    assert open_now == []
    assert latent_pixels_at_once(6, 40 * 40) == 2 * 1600
    assert latent_pixels_at_once(1, 128 * 128) == 128 * 128


class Redness(nn.Module):
    """Two classes: how little, and how much red."""

    def forward(self, images: Tensor) -> Tensor:
        red = images[:, 0].mean(dim=(1, 2)) - images[:, 2].mean(dim=(1, 2))
        return torch.stack([-red, red], 1)


@pytest.fixture
def scripted(tmp_path: Path) -> Path:
    torch.jit.script(Redness()).save(str(tmp_path / "redness.pt"))
    return tmp_path / "redness.pt"


def test_a_torchscript_classifier_judges_images_as_it_was_trained_to_see_them(scripted: Path) -> None:
    judge = discriminator.load(scripted, 1, CPU, torchscript=True)
    red, grey = torch.zeros(3, 20, 30), torch.zeros(3, 20, 30)
    red[0], red[2] = 1.0, -1.0
    scores = judge(torch.stack([red, grey]))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    for score, rgb in zip(scores, ([1.0, 0.5, 0.0], [0.5, 0.5, 0.5]), strict=True):
        normal = (np.array(rgb) - mean) / std
        assert float(score) == pytest.approx(1 - 1 / (1 + np.exp(-2 * (normal[0] - normal[2]))), abs=1e-5)


def test_a_folder_of_transformers_is_a_discriminator_too(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ConvNextConfig(
        num_stages=2, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3, image_size=32, patch_size=4
    )
    network = transformers.ConvNextForImageClassification(config).eval()
    network.save_pretrained(tmp_path, safe_serialization=True)
    looks = {"size": {"shortest_edge": 32}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(looks))
    judge = discriminator.load(tmp_path, 2, CPU)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        wanted = 1 - network(pixel_values=images).logits.softmax(1)[:, 2]
    torch.testing.assert_close(judge(images), wanted, rtol=0, atol=1e-5)
    (tmp_path / "preprocessor_config.json").write_text('{"size": 12000}')
    with pytest.raises(ConfigError, match="expected 1 to 1024 pixels"):
        discriminator.load(tmp_path, 2, CPU)


def test_a_network_much_larger_than_its_weights_is_not_built(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    small = {"num_hidden_layers": 1, "num_attention_heads": 1, "hidden_size": 8, "intermediate_size": 8, "image_size": 32}
    transformers.ViTForImageClassification(transformers.ViTConfig(**small)).save_pretrained(
        tmp_path, safe_serialization=True
    )
    discriminator._from_folder(tmp_path, CPU)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": 2**16, "intermediate_size": 2**18}))
    with pytest.raises(ConfigError, match=r"describes a network of [\d,]+ values, but model.safetensors has"):
        discriminator.load(tmp_path, 0, CPU)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path / "nothing.pt", "expected a TorchScript file"),
        (lambda path: path, "expected a TorchScript file"),
        (lambda path: _folder(path, '{"model_type": "vit"}'), "cannot be used as an image classifier"),
        (lambda path: _folder(path, "{"), "cannot be used as an image classifier"),
        (lambda path: _folder(path, '{"a": [{"attn_implementation": "evil/code"}]}'), "code from elsewhere"),
        (lambda path: _folder(path, '{"attn_implementation": {"": "evil/k"}}'), "code from elsewhere"),
        (lambda path: _written(path / "a.pt", b"no zip"), "cannot be used as an image classifier"),
        (lambda path: _written(path / "a.onnx", b"x"), "expected a TorchScript file"),
        (lambda path: _saved(path / "a.pt", nn.Identity()), "found an output of (1, 3, 384, 384)"),
    ],
)
def test_what_is_no_classifier_is_refused(make: Callable[[Path], Path], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        discriminator.load(make(tmp_path), 1, CPU, torchscript=True)
    assert said in str(refused.value)
    assert refused.value.option == "discriminator"


class Mute(Redness):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.detach())


class Blown(Redness):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images * float("inf"))


@pytest.mark.parametrize(("network", "said"), [(Mute(), "no gradient"), (Blown(), "no finite output")])
def test_one_that_nothing_can_be_learned_from_is_refused(network: nn.Module, said: str, tmp_path: Path) -> None:
    file = tmp_path / "judge.pt"
    torch.jit.trace(network, torch.rand(1, 3, 8, 8), check_trace=False).save(str(file))
    with pytest.raises(ConfigError, match=said) as refused:
        discriminator.load(file, 1, CPU, torchscript=True)
    assert refused.value.option == "discriminator"


def test_of_a_folder_only_the_weights_that_are_read_can_be_named(tmp_path: Path) -> None:
    for name in ("model.safetensors", "best.safetensors", "config.json"):
        (tmp_path / name).touch()
    discriminator.check(tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"best\.safetensors, expected"):
        discriminator.check(tmp_path / "best.safetensors")


def test_a_judgement_counts_as_much_as_its_image_does() -> None:
    given = replace(batch(), shares=torch.tensor([1.0, 0.0, 0.5]))
    estimate, judge = torch.rand(3, 4, 2, 3), PixelLoss(others=((2.0, lambda images: images.mean(dim=(1, 2, 3))),))
    alike, found = (judge(Model(), estimate, each) for each in (batch(), given))
    torch.testing.assert_close(found, alike * torch.tensor([1.0, 0.0, 0.5]))


def test_a_class_that_it_does_not_know_is_refused(scripted: Path) -> None:
    with pytest.raises(ConfigError, match="found 2, expected 0 to 1") as refused:
        discriminator.load(scripted, 2, CPU, torchscript=True)
    assert refused.value.option == "discriminator_class"


def test_a_program_is_run_only_where_that_was_allowed(scripted: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"can run any code; expected a folder with config\.json and model\.safetensors"):
        discriminator.load(scripted, 1, CPU)
    host = TinyHost(tmp_path)
    embeddings_dir.create(host.embeddings_dir, host.model, "x-word", "cat", 2)
    (tmp_path / "1.png").write_bytes(b"")
    config = TrainConfig(discriminator=str(scripted))
    with pytest.raises(ConfigError, match="can run any code") as refused:
        Session(host, "x-word", tmp_path, config).check()
    assert refused.value.option == "discriminator"
    Session(replace(host, torchscript=True), "x-word", tmp_path, config).check()


def test_weights_that_can_hold_code_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit", "architectures": ["ViTForImageClassification"]}')
    torch.save({}, tmp_path / "pytorch_model.bin")  # transformers 4.30 would unpickle it, even when told not to
    with pytest.raises(ConfigError, match=r"expected a folder with config\.json and model\.safetensors"):
        discriminator.load(tmp_path, 1, CPU)


def _folder(path: Path, config: str) -> Path:
    (path / "config.json").write_text(config)
    (path / "model.safetensors").write_bytes(b"x")
    return path


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _saved(path: Path, network: nn.Module) -> Path:
    torch.jit.script(network).save(str(path))
    return path


def test_the_judgement_is_added_and_replaces_nothing(scripted: Path) -> None:
    model, given, both = Model(), batch(), words()
    judge = discriminator.load(scripted, 1, CPU, torchscript=True)
    plain = training_loss(model, given, both, SCALE)
    compared = training_loss(model, given, both, SCALE, PixelLoss(0.5))
    judged = training_loss(model, given, both, SCALE, PixelLoss(0.5, ((0.25, judge),)))
    assert (compared > plain).all()
    difference = (judged - compared).detach()
    assert (difference > 0).all()
    assert (difference < 0.25).all()
    steep = gradients(judged - compared, both)
    assert all(each.abs().max() > 0 for each in steep)


def test_a_run_reddens_its_images_for_a_judge_of_red(scripted: Path, tmp_path: Path, images: Callable) -> None:
    folder, judge = images((16, 16), (16, 16)), discriminator.load(scripted, 1, CPU, torchscript=True)
    config = TrainConfig(max_steps=60, learning_rate="0.05", width=16, height=16, preview_every=0, save_every=0)
    scores = {}
    for weight in (0.0, 100.0):
        host = TinyHost(tmp_path / str(weight), torchscript=True)
        embeddings_dir.create(host.embeddings_dir, host.model, "x-word", "cat", 2)
        options = replace(config, discriminator=str(scripted), discriminator_weight=weight)
        learned = Session(host, "x-word", folder, options).train().embedding.vectors
        noisy, times = torch.zeros(1, 4, 2, 2), torch.tensor([50])
        with torch.no_grad():
            cond = host.model.encode_prompts(["a photo of x-word"], {"x-word": learned})
            told = host.model.predict(noisy, times, cond, ImageConditioning(torch.zeros(1, 6)))
            clean = clean_latents(noisy, told, host.model.alphas_cumprod[times], "epsilon")
            scores[weight] = float(judge(host.model.decode(clean)))
    assert scores[100.0] < scores[0.0] - 0.05


def test_pixels_are_kept_only_where_they_are_compared(tmp_path: Path, images: Callable[..., Path]) -> None:
    folder = images((16, 16), (32, 16))
    for weight, kept in ((0.0, False), (1.0, True)):
        host = TinyHost(tmp_path / str(weight), torchscript=True)
        embeddings_dir.create(host.embeddings_dir, host.model, "x-word", "cat", 2)
        seen: list[Batch] = []

        def callbacks(trainer: object, run: object, seen: list[Batch] = seen) -> tuple[()]:
            seen.append(next(trainer.dataset.batches(1)))
            return ()

        config = TrainConfig(max_steps=2, reconstruction_weight=weight, width=16, height=16, preview_every=0)
        Session(host, "x-word", folder, config).train(callbacks)
        assert (seen[0].pixels is not None) is kept
        if kept:
            assert seen[0].pixels.dtype == torch.uint8
            assert seen[0].pixels.shape == (1, 3, 16, 16)
