"""SD 2.x, SDXL and inpainting over real modules: conditioning, predictions and gradients are the host's, for each family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from networks import WIDTHS, condition_as_host, embed_as_host, predict_as_host
from test_webui_model import batch, inputs, state, told
from torch.nn import functional as F

from ti_trainer.errors import ConfigError
from ti_trainer.functional.guidance import GuidanceScale
from ti_trainer.host import ModelOptions
from ti_trainer.hosts.webui.patches import without_host_patches
from ti_trainer.offload.patching import patched
from ti_trainer.offload.plan import MemoryPlan
from ti_trainer.training.pixel_loss import PixelLoss
from ti_trainer.training.step import training_loss

LONG = "a small red thing, " * 14 + "a zz-cat " + "and more " * 40
OTHERS = [family for family in WIDTHS if family != "SD 1.x"]
SDXLS = [family for family in WIDTHS if "SDXL" in family]
every_other_family = pytest.mark.parametrize("sd_model", OTHERS, indirect=True)
every_family = pytest.mark.parametrize("sd_model", list(WIDTHS), indirect=True)
every_sdxl = pytest.mark.parametrize("sd_model", SDXLS, indirect=True)


@every_other_family
def test_a_prompt_is_encoded_and_an_image_predicted_as_by_the_host(
    webui_model: Callable[..., Any], sd_model: Any, words: Any
) -> None:
    prompts = ["zz-cat in a (red:1.3) garden", "a photo of zz-cat", LONG, ""]
    model, latents, timesteps = webui_model(), *inputs(1, 16, 8)[:2]
    masked = torch.randn(1, 5, 16, 8, generator=torch.Generator().manual_seed(4))
    images = replace(told(1), masked=masked)
    ours = [model.encode_prompts([prompt], words) for prompt in prompts]
    predicted = [model.predict(latents[:1], timesteps[:1], each, images) for each in ours]
    embed_as_host(sd_model, "zz-cat", words["zz-cat"])
    hosts = [condition_as_host(sd_model, prompt, images.sizes) for prompt in prompts]
    for each, host in zip(ours, hosts, strict=True):
        assert each.hidden.shape == host["crossattn"].shape
        assert (each.hidden - host["crossattn"]).abs().max() < 1e-5
        if each.pooled is not None:
            assert (each.pooled - host["vector"][:, : each.pooled.shape[1]]).abs().max() < 1e-5
    assert ("vector" in hosts[0]) == (ours[0].pooled is not None)
    for each, host in zip(predicted, hosts, strict=True):
        wanted = predict_as_host(sd_model, latents[:1], timesteps[:1], host, masked)
        assert wanted.abs().mean() > 0.01
        torch.testing.assert_close(each, wanted, rtol=1e-5, atol=1e-5)  # 1.05e-5 apart on some processors


@every_other_family
def test_sizes_and_masked_images_are_used(webui_model: Callable[..., Any], sd_model: Any, words: Any) -> None:
    model, (latents, timesteps, _), images = webui_model(), inputs(1), told()
    cond = model.encode_prompts(["a zz-cat"] * 2, words)
    usual = model.predict(latents, timesteps, cond, images)
    told_otherwise = replace(images, sizes=images.sizes.flip(1)), replace(images, masked=-images.masked)
    moves = [bool((model.predict(latents, timesteps, cond, each) - usual).abs().max() > 1e-4) for each in told_otherwise]
    assert moves == ["SDXL" in sd_model.family, "inpainting" in sd_model.family]


@every_other_family
def test_each_encoders_gradient_is_that_of_finite_differences(
    webui_model: Callable[..., Any], sd_model: Any, words: Any
) -> None:
    model, vectors = webui_model(), words["zz-cat"]

    def loss(encoder: str, step: torch.Tensor | float) -> torch.Tensor:
        return training_loss(model, batch(), {"zz-cat": {**vectors, encoder: vectors[encoder] + step}}).mean()

    with model.training():
        training_loss(model, batch(), words).mean().backward()
        for encoder, each in vectors.items():
            step = each.grad / each.grad.norm() * 4e-3  # along the gradient: large against rounding
            with torch.no_grad():
                measured = (loss(encoder, step) - loss(encoder, -step)) / 2
            expected = float((each.grad * step).sum())
            assert expected > 1e-6
            assert float(measured) == pytest.approx(expected, rel=0.01)


@every_sdxl
def test_pooling_is_at_the_end_of_text_wherever_the_word_stands(
    webui_model: Callable[..., Any], sd_model: Any, words: Any
) -> None:
    model, stage = webui_model(), sd_model.conditioner.embedders[1]
    ends: list[torch.Tensor] = []
    for prompt in ("zz-cat on a table", "a zz-cat on", "a photo of zz-cat", "a photo"):
        seen: list[torch.Tensor] = []
        hook = stage.wrapped.model.ln_final.register_forward_hook(lambda *args, seen=seen: seen.append(args[-1]))
        pooled = model.encode_prompts([prompt], words).pooled
        hook.remove()
        (chunk,) = model.tokenize(prompt, words).chunks
        states = seen[-1] if seen[-1].ndim == 3 else seen[-1][:, None]
        end = states[:, chunk.index(stage.id_end) if states.shape[1] > 1 else 0]
        assert (pooled - end @ stage.wrapped.model.text_projection).abs().max() < 1e-6
        ends.append(pooled)
    assert all((each - ends[0]).abs().max() > 1e-4 for each in ends[1:])


@every_sdxl
def test_latents_are_the_hosts_though_it_draws_them_at_once(webui_model: Callable[..., Any], sd_model: Any) -> None:
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mean, std = webui_model().encode_images(pixels)
    torch.manual_seed(1)
    noise = torch.randn(mean.shape)
    torch.manual_seed(1)
    hosts = sd_model.scale_factor * sd_model.first_stage_model.encode(pixels)
    assert (mean + std * noise - hosts).abs().max() < 1e-5


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
@every_other_family
def test_everything_is_given_back(webui_model: Callable[..., Any], sd_model: Any, words: Any, error: Any) -> None:
    model, before = webui_model(vae_to_ram=True), state(sd_model)
    weights = {name: each.clone() for name, each in sd_model.state_dict().items()}
    assert any(before["requires_grad"])
    try:
        with model.training():
            inside = state(sd_model)
            training_loss(model, batch(), words).mean().backward()
            with model.restored():
                assert state(sd_model) == before
            if error:
                raise error
    except KeyboardInterrupt:
        pass
    assert not any(inside["requires_grad"] + inside["training"])
    assert True not in inside["checkpoint"]
    assert state(sd_model) == before
    assert all(torch.equal(weights[name], each) for name, each in sd_model.state_dict().items())
    stage = model.texts[0].stage
    assert (stage.hijack.fixes, stage.hijack.comments, stage.hijack.extra_generation_params) == (None, [], {})


@every_sdxl
def test_medvram_hooks_of_the_conditioner_rest_and_return(
    webui_model: Callable[..., Any], sd_model: Any, words: Any
) -> None:
    """As the host's lowvram.py has them for SDXL: one on the U-Net, one on all that conditions, one on the VAE."""
    sent = []

    def send_me_to_gpu(module: Any, _: Any) -> None:
        sent.append(module)

    sd_model.lowvram = True
    for part in (sd_model.model, sd_model.conditioner, sd_model.first_stage_model):
        part.register_forward_pre_hook(send_me_to_gpu)
    before, model = state(sd_model), webui_model()
    with model.training():
        training_loss(model, batch(), words).mean().backward()
    assert sent == []
    assert state(sd_model) == before
    model.encode_images(torch.zeros(1, 3, 64, 64))
    assert sent == [sd_model.first_stage_model]
    latents, timesteps, _ = inputs()
    cond = condition_as_host(sd_model, "a", told(1).sizes)
    predict_as_host(sd_model, latents[:1], timesteps[:1], cond, told(1).masked)
    assert sent[1:] == [sd_model.conditioner, sd_model.model]


@every_sdxl
def test_clip_skip_is_for_clip_l_alone_and_only_if_the_host_says_so(
    webui_model: Callable[..., Any], sd_model: Any, words: Any
) -> None:
    transformer = sd_model.conditioner.embedders[0].wrapped.transformer
    usual = webui_model().encode_prompts(["a cat"], {}).hidden
    assert torch.equal(webui_model(clip_skip=12).encode_prompts(["a cat"], {}).hidden, usual)
    skipped = webui_model(clip_skip=3, clip_l_skip=True).encode_prompts(["a cat"], {}).hidden
    ids = torch.tensor(webui_model().tokenize("a cat", {}).chunks)
    states = transformer(input_ids=ids, output_hidden_states=True).hidden_states
    width = states[0].shape[-1]
    assert (usual[..., :width] - states[2]).abs().max() < 1e-6
    assert (skipped[..., :width] - states[-3]).abs().max() < 1e-6
    assert torch.equal(skipped[..., width:], usual[..., width:])
    with pytest.raises(ConfigError, match="found 4, expected 1 to 3"):
        webui_model(clip_skip=4, clip_l_skip=True)


@pytest.mark.parametrize("sd_model", ["SD 2.x"], indirect=True)
def test_sd2_ends_a_layer_early_fills_up_with_zeros_and_knows_no_clip_skip(
    webui_model: Callable[..., Any], sd_model: Any
) -> None:
    model = webui_model(clip_skip=12)
    (chunk,) = model.tokenize("a cat", {}).chunks
    assert chunk == (49406, 320, 2368, 49407, *[0] * 73)
    assert [model.token_text(each) for each in chunk[1:3]] == ["a", "cat"]
    assert [model.token_piece(each) for each in (2368, 49408, 10**6)] == ["cat</w>", "", ""]
    encoder = sd_model.cond_stage_model.wrapped
    last_but_one: list[torch.Tensor] = []
    encoder.model.transformer.resblocks[1].register_forward_hook(lambda *args: last_but_one.append(args[-1]))
    hidden = model.encode_prompts(["a cat"], {}).hidden
    assert (hidden - encoder.model.ln_final(last_but_one[0].permute(1, 0, 2))).abs().max() < 1e-6
    sd_model.parameterization = "v"
    assert (webui_model().default_size_px, str(webui_model().spec)) == (768, "SD 2.x, v prediction")


@every_sdxl
def test_init_text_is_tokenised_by_both_encoders(webui_model: Callable[..., Any], sd_model: Any) -> None:
    model = webui_model()
    assert (model.default_size_px, model.widths) == (1024, WIDTHS[sd_model.family])
    tables = [
        sd_model.conditioner.embedders[0].wrapped.transformer.text_model.embeddings.token_embedding,
        sd_model.conditioner.embedders[1].wrapped.model.token_embedding,
    ]
    found = model.token_embeddings("a red cat")
    assert list(found) == ["clip_l", "clip_g"]
    for each, table in zip(found.values(), tables, strict=True):
        assert torch.equal(each, table.wrapped.weight[[320, 736, 2368]])
    for each, table in zip(model.token_tables().values(), tables, strict=True):
        assert torch.equal(each, table.wrapped.weight)


def test_without_inpainting_there_is_no_masked_image(webui_model: Callable[..., Any], sd_model: Any) -> None:
    assert webui_model().encode_masked(torch.zeros(1, 3, 64, 64), None) is None


@pytest.mark.parametrize("sd_model", ["SD 1.x inpainting", "SDXL inpainting"], indirect=True)
def test_the_masked_image_is_grey_where_it_shall_paint(webui_model: Callable[..., Any], sd_model: Any) -> None:
    model = webui_model()
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    grey, _ = model.encode_images(torch.zeros_like(pixels))
    assert model.spec.inpainting
    assert torch.equal(model.encode_masked(pixels, None), torch.cat([torch.ones(1, 1, 8, 8), grey], 1))
    masks = torch.zeros(1, 1, 64, 64)
    masks[..., :32, :] = 1
    half = model.encode_masked(pixels, masks)
    assert torch.equal(half[0, 0], torch.tensor([[1.0]] * 4 + [[0.0]] * 4).expand(8, 8))
    assert torch.equal(half[:, 1:], model.encode_images(pixels * (1 - masks))[0])


@pytest.mark.parametrize("sd_model", ["SDXL"], indirect=True)
def test_zero_terminal_snr_rescales_the_noise_schedule_of_training_alone(
    webui_model: Callable[..., Any], sd_model: Any
) -> None:
    before = sd_model.alphas_cumprod.clone()
    model = webui_model(options=ModelOptions(prediction_type="v_prediction", zero_terminal_snr="on"))
    assert (model.alphas_cumprod[0], model.alphas_cumprod[-1]) == (before[0], 0)
    assert torch.equal(sd_model.alphas_cumprod, before)
    assert sd_model.parameterization == "eps"


def overflowing(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any = None) -> torch.Tensor:
    """Attention as some devices compute it: scores in the precision of what is compared."""
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    return scores.softmax(-1) @ value


@pytest.mark.parametrize("fp32", [False, True])
def test_attention_in_float32_has_numbers_where_half_precision_has_none(
    monkeypatch: pytest.MonkeyPatch, sd_model: Any, fp32: bool
) -> None:
    layer = next(each for each in sd_model.modules() if hasattr(each, "to_q"))
    x = torch.randn(1, 5, layer.to_q.in_features, generator=torch.Generator().manual_seed(1))
    for each in (layer.to_q, layer.to_k):
        torch.nn.init.normal_(each.weight, std=60)
    with torch.no_grad():
        wanted = layer(x)
        assert (layer.to_q(x) @ layer.to_k(x).transpose(1, 2)).max() > 65504
        monkeypatch.setattr(F, "scaled_dot_product_attention", overflowing)
        with patched(without_host_patches(layer.half(), fp32_attention=fp32)):
            found = layer(x.half())
    assert found.dtype == torch.float16
    assert bool(found.isfinite().all()) == fp32
    if fp32:
        assert (found - wanted).abs().max() < 2e-2


@pytest.mark.parametrize(
    ("sd_model", "around", "fp32"),
    [
        ("SD 2.x", {"unet_dtype": torch.float16}, True),
        ("SD 2.x", {}, False),
        ("SD 1.x", {"unet_dtype": torch.float16}, False),
        ("SD 1.x", {"fp32_attention": True}, True),
    ],
    indirect=["sd_model"],
)
def test_attention_is_in_float32_for_sd2_in_half_precision_or_if_the_host_says_so(
    webui_model: Callable[..., Any], sd_model: Any, around: dict[str, Any], fp32: bool
) -> None:
    with webui_model(**around).training():
        layers = [each for each in sd_model.model.modules() if hasattr(each, "to_q")]
        assert {each.forward.__func__.__name__ for each in layers} == {"_attend_fp32" if fp32 else "_attend"}


@every_family
def test_dreamartist_trains_both_words_through_the_host(webui_model: Callable[..., Any], words: Any) -> None:
    model = webui_model()
    negative = {name: (each.detach() * 0.5).requires_grad_() for name, each in words["zz-cat"].items()}
    both = {**words, "zz-cat-neg": negative}
    fed = replace(batch(), negative_prompts=tuple(each.replace("zz-cat", "zz-cat-neg") for each in batch().prompts))
    places = {each.name for prompt in fed.negative_prompts for each in model.tokenize(prompt, both).splices}
    assert places == {"zz-cat-neg"}
    with model.training():
        training_loss(model, fed, both, GuidanceScale(1.5, 3, "cos")).mean().backward()
    for word in both.values():
        assert all(each.grad.abs().sum(1).min() > 0 for each in word.values())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("sd_model", ["SD 1.x", "SDXL", "sgm SDXL"], indirect=True)  # inpainting has the same VAEs
def test_pixels_are_compared_through_the_hosts_vae(
    webui_model: Callable[..., Any], sd_model: Any, words: Any, checkpointing: bool
) -> None:
    model, vae = webui_model(), sd_model.first_stage_model
    model.memory.plan = MemoryPlan(checkpointing=float(checkpointing))
    vectors = list(words["zz-cat"].values())
    pixels = torch.randint(0, 256, (2, 3, *(8 * side for side in batch().latents.shape[2:])), dtype=torch.uint8)
    fed = replace(batch(), pixels=pixels)

    class InOneGraph(PixelLoss):
        """By the host's own decoder, as it is."""

        def __call__(self, model: Any, estimate: torch.Tensor, given: Any) -> torch.Tensor:
            decoded = vae.decode(estimate / sd_model.scale_factor)
            return 0.5 * (decoded - (pixels / 127.5 - 1)).abs().mean(dim=(1, 2, 3))

    def gradients(loss: PixelLoss) -> tuple[torch.Tensor, list[torch.Tensor]]:
        with model.training():
            found = training_loss(model, fed, words, None, loss)
            return found.detach(), list(torch.autograd.grad(found.mean(), vectors))

    (found, steep), (wanted, expected) = gradients(PixelLoss(0.5)), gradients(InOneGraph(0.5))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    for one, other in zip(steep, expected, strict=True):
        assert (one - other).norm() < 1e-4 * other.norm()
    assert not any("forward" in vars(module) for module in vae.modules())
