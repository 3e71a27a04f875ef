"""The model over real ldm modules: its numbers are the host's, and what it borrows it gives back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch

from ti_trainer.data.dataset import Batch
from ti_trainer.errors import ModelError
from ti_trainer.hosts.webui.patches import channels_last
from ti_trainer.model import Conditioning, ImageConditioning
from ti_trainer.training.step import training_loss


def state(network: Any) -> dict[str, Any]:
    """All that training could leave behind in a network, without its numbers."""
    return {
        "requires_grad": [each.requires_grad for each in network.parameters()],
        "grad": [each.grad is None for each in network.parameters()],
        "training": [each.training for each in network.modules()],
        "own": [sorted(vars(each)) for each in network.modules()],
        "padding": [vars(each).get("padding_mode") for each in network.modules()],
        "checkpoint": [vars(each).get("checkpoint", vars(each).get("use_checkpoint")) for each in network.modules()],
        "hooks": [list(each._forward_pre_hooks.items()) for each in network.modules()],
    }


def inputs(seed: int = 0, height: int = 8, width: int = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(2, 4, height, width, generator=generator)
    return latents, torch.tensor([0, 987]), torch.randn(2, 77, 32, generator=generator)


def batch(prompts: tuple[str, ...] = ("a photo of zz-cat", "a (red:1.2) zz-cat")) -> Batch:
    latents, timesteps, _ = inputs(5)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(6))
    return Batch(latents, noise, timesteps, prompts, None, told())


def told(count: int = 2) -> ImageConditioning:
    """Sizes and masked images, each of another."""
    sizes = torch.tensor([[640, 480, 3, 20, 512, 448], [1024, 1024, 0, 0, 1024, 1024]]).float()
    masked = torch.randn(2, 5, 8, 8, generator=torch.Generator().manual_seed(7))
    return ImageConditioning(sizes[:count], masked[:count])


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 8)])
def test_predictions_are_the_hosts(webui_model: Callable[..., Any], sd_model: Any, height: int, width: int) -> None:
    latents, timesteps, hidden = inputs(1, height, width)
    with torch.no_grad():
        ours = webui_model().predict(latents, timesteps, Conditioning(hidden), told())
        hosts = sd_model.apply_model(latents, timesteps, hidden)
    assert hosts.abs().mean() > 0.01
    assert (ours - hosts).abs().max() < 1e-5


def test_latents_are_the_hosts(webui_model: Callable[..., Any], sd_model: Any) -> None:
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mean, std = webui_model().encode_images(pixels)
    torch.manual_seed(1)
    noise = torch.randn(mean.shape)
    torch.manual_seed(1)
    hosts = sd_model.get_first_stage_encoding(sd_model.encode_first_stage(pixels))
    assert mean.dtype == std.dtype == torch.float32
    assert (mean + std * noise - hosts).abs().max() < 1e-5


def test_decoding_is_the_hosts_with_a_gradient(webui_model: Callable[..., Any], sd_model: Any) -> None:
    latents = inputs()[0].requires_grad_()
    pixels = webui_model().decode(latents)
    assert (pixels - sd_model.decode_first_stage(latents)).abs().max() < 1e-5
    pixels.square().mean().backward()
    assert latents.grad.abs().mean() > 0


def test_a_vae_that_encodes_nan_is_refused(webui_model: Callable[..., Any], sd_model: Any) -> None:
    sd_model.first_stage_model.quant_conv.bias.data.fill_(float("nan"))
    with pytest.raises(ModelError, match="choose another in Settings, VAE"):
        webui_model().encode_images(torch.zeros(1, 3, 64, 64))


def test_a_vae_that_overflows_in_half_precision_decodes_in_full(webui_model: Callable[..., Any], sd_model: Any) -> None:
    vae, latents = sd_model.first_stage_model, torch.randn(1, 4, 4, 4)
    vae.decoder.conv_in.weight.data *= 2e5  # what follows is normalised: nothing is lost but in half precision
    wanted = sd_model.decode_first_stage(latents).detach()
    vae.half()
    assert not torch.isfinite(vae.decode(latents.half() / sd_model.scale_factor)).all()
    model, given = webui_model(), latents.clone().requires_grad_()
    for _ in range(2):
        with model.decoding() as decode:
            pixels = decode(given)
            (gradient,) = torch.autograd.grad(pixels.square().sum(), given)
        assert (pixels.detach().float() - wanted).abs().max() < 0.02
        assert gradient.isfinite().all()
        assert next(vae.parameters()).dtype == torch.float16


def test_a_vae_that_overflows_in_half_precision_encodes_in_full(webui_model: Callable[..., Any], sd_model: Any) -> None:
    vae, pixels = sd_model.first_stage_model, torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    vae.encoder.conv_in.weight.data *= 2e5  # what follows is normalised: nothing is lost but in half precision
    vae.half()
    weights = {name: each.clone() for name, each in vae.state_dict().items()}
    assert not torch.isfinite(vae.encode(pixels.half()).mean).all()
    model = webui_model()
    mean, std = model.encode_images(pixels)
    again, _ = model.encode_images(pixels)
    assert all(each.dtype == torch.float16 and torch.equal(each, weights[name]) for name, each in vae.state_dict().items())
    hosts = vae.float().encode(pixels)
    assert (mean - hosts.mean * 0.18215).abs().max() < 1e-6
    assert (std - hosts.std * 0.18215).abs().max() < 1e-6
    assert torch.equal(again, mean)


def test_the_gradient_is_that_of_finite_differences(webui_model: Callable[..., Any], words: Any) -> None:
    model, vectors = webui_model(), words["zz-cat"]["clip_l"]
    direction = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(9))

    def loss(step: float) -> torch.Tensor:
        return training_loss(model, batch(), {"zz-cat": {"clip_l": vectors + step * direction}}).mean()

    with model.training():
        loss(0.0).backward()
        with torch.no_grad():
            measured = (loss(2e-3) - loss(-2e-3)) / 4e-3
    assert measured.abs() > 1e-4
    assert float((vectors.grad * direction).sum()) == pytest.approx(float(measured), rel=0.02)


def test_what_the_seam_promises(webui_model: Callable[..., Any], sd_model: Any) -> None:
    sd_model.alphas_cumprod_original = sd_model.alphas_cumprod.clone()
    sd_model.alphas_cumprod = torch.zeros(1000)  # as with the host's Zero Terminal SNR, which is for sampling
    model = webui_model()
    assert (model.name, model.checkpoint_hash, model.widths) == ("tiny", "0123456789", {"clip_l": 32})
    assert (str(model.spec), model.default_size_px, model.needs_loss_scaling) == ("SD 1.x, epsilon prediction", 64, False)
    assert torch.equal(model.alphas_cumprod, sd_model.alphas_cumprod_original)
    sd_model.parameterization = "v"
    assert webui_model().spec.prediction_type == "v_prediction"
    assert webui_model(unet_dtype=torch.float16).needs_loss_scaling


class Stopped(BaseException):
    pass


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt, Stopped])
def test_everything_is_given_back(webui_model: Callable[..., Any], sd_model: Any, words: Any, error: Any) -> None:
    model, before = webui_model(vae_to_ram=True), state(sd_model)
    weights = {name: each.clone() for name, each in sd_model.state_dict().items()}
    assert any(before["requires_grad"])
    assert True in before["checkpoint"]
    with suppress(error or RuntimeError), model.training():
        inside = state(sd_model)
        training_loss(model, batch(), words).mean().backward()
        if error:
            raise error
    assert not any(inside["requires_grad"] + inside["training"])
    assert True not in inside["checkpoint"]
    assert state(sd_model) == before
    assert all(torch.equal(weights[name], each) for name, each in sd_model.state_dict().items())


def test_a_failure_on_the_way_in_leaves_nothing(webui_model: Callable[..., Any], sd_model: Any) -> None:
    before = state(sd_model)
    layer = next(each for each in sd_model.modules() if hasattr(each, "to_q"))
    type(layer).forward, original = property(lambda self: None), type(layer).forward
    try:
        with pytest.raises(AttributeError), webui_model().training():
            pytest.fail("it cannot be entered")
    finally:
        type(layer).forward = original
    assert state(sd_model) == before


def test_the_hosts_attention_neither_acts_nor_is_lost(
    webui_model: Callable[..., Any], sd_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even one that no gradient passes, as the host's fastest."""
    from ldm.modules.attention import CrossAttention

    def optimised(self: Any, x: torch.Tensor, context: Any = None, mask: Any = None) -> torch.Tensor:
        return torch.zeros_like(x)

    latents, timesteps, hidden = inputs()
    plain = webui_model().predict(latents, timesteps, Conditioning(hidden), told())
    monkeypatch.setattr(CrossAttention, "forward", optimised)
    assert torch.equal(webui_model().predict(latents, timesteps, Conditioning(hidden), told()), plain)
    assert CrossAttention.forward is optimised
    assert (sd_model.apply_model(latents, timesteps, hidden) - plain).abs().max() > 1e-3


def test_images_do_not_tile_in_training(webui_model: Callable[..., Any], sd_model: Any) -> None:
    latents, timesteps, hidden = inputs()
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    plain = webui_model().predict(latents, timesteps, Conditioning(hidden), told()), *webui_model().encode_images(pixels)
    for layer in sd_model.modules():
        if type(layer) is torch.nn.Conv2d:
            layer.padding_mode = "circular"
    now = webui_model().predict(latents, timesteps, Conditioning(hidden), told()), *webui_model().encode_images(pixels)
    assert all(torch.equal(ours, before) for ours, before in zip(now, plain, strict=True))
    assert all(each.padding_mode == "circular" for each in sd_model.modules() if type(each) is torch.nn.Conv2d)


def test_medvram_hooks_rest_and_return(webui_model: Callable[..., Any], sd_model: Any, words: Any) -> None:
    """As the host's lowvram.py: a module's forward brings it to the GPU and sends the last one away."""
    sent, others, emptied = [], [], []

    def send_me_to_gpu(module: Any, _: Any) -> None:
        sent.append(module)

    sd_model.lowvram = True
    transformer = sd_model.cond_stage_model.wrapped.transformer
    sd_model.model.register_forward_pre_hook(send_me_to_gpu)
    transformer.register_forward_pre_hook(send_me_to_gpu)
    transformer.register_forward_pre_hook(lambda *_: others.append("acts"))
    before = state(sd_model)
    model = webui_model(empty_device=lambda: emptied.append("emptied"))
    with model.training():
        training_loss(model, batch(), words).mean().backward()
    assert (sent, emptied) == ([], ["emptied"])
    assert others
    assert state(sd_model) == before
    with torch.no_grad():
        sd_model.cond_stage_model(["a"])
        sd_model.apply_model(*inputs())
    assert sent == [transformer, sd_model.model]


def test_in_the_middle_the_host_can_draw(webui_model: Callable[..., Any], sd_model: Any, words: Any) -> None:
    cleared: list[str] = []
    model, before = webui_model(clear_networks=lambda: cleared.append("cleared"), vae_to_ram=True), state(sd_model)
    with model.training():
        inside = state(sd_model)
        with model.restored():
            assert state(sd_model) == before
        assert state(sd_model)["requires_grad"] == inside["requires_grad"]
        assert state(sd_model)["own"] == inside["own"]
        with pytest.raises(ZeroDivisionError), model.restored():
            _ = 1 / 0
        training_loss(model, batch(), words).mean().backward()
    assert cleared == ["cleared"] * 3  # what a preview loaded does not act in training either
    assert state(sd_model) == before
    with model.restored():
        assert state(sd_model) == before


def test_the_vae_waits_in_ram_if_the_host_wants_that(
    webui_model: Callable[..., Any], sd_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae, moves = sd_model.first_stage_model, []
    monkeypatch.setattr(vae, "to", lambda device: moves.append(str(device)))
    model = webui_model(vae_to_ram=True, device=torch.device("meta"))
    with model.training():
        assert moves == ["cpu"]
        with model._vae._ready():
            assert moves == ["cpu", "meta"]
        assert moves == ["cpu", "meta", "cpu"]


@pytest.mark.parametrize(
    "options",
    [{"learning_rate": "0.02"}, {"optimizer": "sphere", "learning_rate": "auto", "gradient_accumulation_steps": 2}],
)
def test_training_learns_and_changes_the_vectors_only(
    webui_model: Callable[..., Any],
    sd_model: Any,
    trainer: Callable[..., Any],
    dataset: Callable[..., Any],
    options: dict[str, Any],
) -> None:
    model = webui_model()
    data = dataset((64, 64), (64, 64), model=model)
    run = trainer(model, data, max_steps=15, batch_size=2, **options)
    fixed = batch(("a photo of x-word",) * 2)

    def loss() -> float:
        return float(training_loss(model, fixed, {"x-word": run.embedding.vectors}).mean())

    weights = {name: each.clone() for name, each in sd_model.state_dict().items()}
    at_first = loss()
    assert [event.step for event in run.run()][-1] == 15
    assert loss() < at_first
    assert all(torch.equal(weights[name], each) for name, each in sd_model.state_dict().items())
    assert all(each.grad is None for each in sd_model.parameters())


def test_weights_lie_in_memory_as_before_after_training() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3), torch.nn.Conv2d(8, 4, 3).to(memory_format=torch.channels_last))
    before = [(each.stride(), each.detach().clone()) for each in network.parameters()]
    with channels_last(network):
        assert all(each.is_contiguous(memory_format=torch.channels_last) for each in network.parameters() if each.ndim == 4)
    for each, (strides, values) in zip(network.parameters(), before, strict=True):
        assert each.stride() == strides
        assert torch.equal(each, values)
