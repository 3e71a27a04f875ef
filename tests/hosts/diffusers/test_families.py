"""Every family of models does what the library's own pipelines and schedulers do, in both layouts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import families
import ldm_export
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from ti_trainer import formats
from ti_trainer.benchmark.loops import bare_step, new_trainer, time_by_part
from ti_trainer.data.dataset import Dataset
from ti_trainer.data.images import Frame, load_image
from ti_trainer.data.loading import DatasetOptions, load_dataset
from ti_trainer.data.prompts import Prompter
from ti_trainer.embedding import Embedding
from ti_trainer.errors import ConfigError
from ti_trainer.functional.objective import add_noise, target
from ti_trainer.host import GenerationRequest, ModelOptions
from ti_trainer.hosts.diffusers.loading import load
from ti_trainer.hosts.diffusers.model import DiffusersModel
from ti_trainer.hosts.diffusers.sampling import generate, whole_image
from ti_trainer.model import ImageConditioning, ModelSpec
from ti_trainer.training.step import training_loss
from ti_trainer.workbench.diagnosis import NAME

PROMPTS = ["a photo of a big red star on grass", ""]
KINDS = {
    "sd1": ModelSpec("embedded"),
    "sd1-inpainting": ModelSpec("embedded", inpainting=True),
    "sd2": ModelSpec("SD 2.x"),
    "sd2-v": ModelSpec("SD 2.x", "v_prediction"),
    "sd2-inpainting": ModelSpec("SD 2.x", inpainting=True),
    "sdxl": ModelSpec("SDXL"),
    "sdxl-v": ModelSpec("SDXL", "v_prediction", zero_terminal_snr=True),
    "sdxl-inpainting": ModelSpec("SDXL", inpainting=True),
}


class Family(NamedTuple):
    """A pipeline, and our model over a folder that it was saved to."""

    name: str
    pipeline: Any
    folder: Path
    model: DiffusersModel


@pytest.fixture
def opened() -> Callable[[str], Family]:
    return lambda name: Family(name, families.shared(name), families.saved(name), families.opened(name))


@pytest.fixture(params=families.FAMILIES)
def family(request: pytest.FixtureRequest, opened: Callable[[str], Family]) -> Family:
    return opened(request.param)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def words(model: DiffusersModel, count: int = 2) -> dict[str, dict[str, Tensor]]:
    vectors = {name: noise(count, width, seed=7) * 0.3 for name, width in model.widths.items()}
    return {"zz-cat": {name: each.requires_grad_() for name, each in vectors.items()}}


def assert_close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def encoded(pipeline: Any, prompts: list[str]) -> tuple[Tensor, Tensor | None]:
    """Hidden and pooled, as the pipeline makes them."""
    found = pipeline.encode_prompt(prompts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    return (found[0], found[2]) if len(found) == 4 else (found[0], None)


def test_what_it_is_is_found_out(family: Family) -> None:
    assert family.model.spec == KINDS[family.name]


def test_conditioning_and_prediction_are_the_pipelines(family: Family) -> None:
    pipeline, model = family.pipeline, family.model
    latents, timesteps, pixels = noise(2, 4, 8, 8), torch.tensor([10, 800]), noise(2, 3, 64, 64).clamp(-1, 1)
    mask = torch.zeros(2, 1, 64, 64)
    mask[:, :, 10:40, 20:50] = 1
    with torch.no_grad():
        hidden, pooled = encoded(pipeline, PROMPTS)
        inputs, added = latents, None
        if model.spec.inpainting:
            small = torch.nn.functional.interpolate(mask, (8, 8))  # as prepare_mask_latents does
            seen = pipeline.vae.encode(pixels * (mask < 0.5)).latent_dist.mean * pipeline.vae.config.scaling_factor
            inputs = torch.cat([latents, small, seen], 1)
        sizes = [(100, 90, 3, 4, 64, 64), (64, 64, 0, 0, 64, 64)]
        if pooled is not None:
            added = {"text_embeds": pooled, "time_ids": torch.cat([time_ids(pipeline, each) for each in sizes])}
        wanted = pipeline.unet(inputs, timesteps, hidden, added_cond_kwargs=added).sample
        cond = model.encode_prompts(PROMPTS, {})
        images = ImageConditioning(torch.tensor(sizes, dtype=torch.float32), model.encode_masked(pixels, mask))
        found = model.predict(latents, timesteps, cond, images)
    assert_close(cond.hidden, hidden)
    assert (cond.pooled is None) == (pooled is None)
    if pooled is not None:
        assert_close(cond.pooled, pooled)
    assert_close(found, wanted)


def time_ids(pipeline: Any, sizes: tuple[int, ...]) -> Tensor:
    """(1, 6), by the pipeline's own function where it has one for text alone."""
    original, crop, wanted = sizes[:2], sizes[2:4], sizes[4:]
    if isinstance(pipeline, StableDiffusionXLPipeline):
        return pipeline._get_add_time_ids(original, crop, wanted, torch.float32, families.CLIP_G)
    return torch.tensor([[*original, *crop, *wanted]], dtype=torch.float32)


def test_noise_and_target_are_the_schedulers(family: Family) -> None:
    scheduler, model = family.pipeline.scheduler, family.model
    latents, eps, timesteps = noise(4, 4, 8, 8), noise(4, 4, 8, 8, seed=1), torch.tensor([0, 10, 800, 999])
    alphas = model.alphas_cumprod[timesteps]
    assert_close(add_noise(latents, eps, alphas), scheduler.add_noise(latents, eps, timesteps))
    is_v = scheduler.config.prediction_type == "v_prediction"
    wanted = scheduler.get_velocity(latents, eps, timesteps) if is_v else eps
    assert_close(target(latents, eps, alphas, model.spec.prediction_type), wanted)
    if model.spec.zero_terminal_snr:
        assert model.alphas_cumprod[-1] == 0


def test_a_single_file_is_the_same_model(family: Family, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    weights = {key: value.contiguous() for key, value in ldm_export.checkpoint(family.model).items()}
    if family.name == "sdxl-v":  # as such models mark themselves
        weights |= {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    save_file(weights, path)
    ldm_export.describe(family.model, path, family.folder / "text_encoder")
    read = load(str(path), "cpu")
    assert read.spec == family.model.spec
    assert read.widths == family.model.widths
    given = (noise(1, 4, 8, 8), torch.tensor([500]))
    with torch.no_grad():
        (one, first), (other, second) = (
            (cond, model.predict(*given, cond, whole_image(model, 64, 64)))
            for model in (read, family.model)
            for cond in [model.encode_prompts([PROMPTS[0] + " zz-cat"], words(model))]
        )
    assert torch.equal(one.hidden, other.hidden)
    assert_close(first, second)
    assert torch.equal(read.alphas_cumprod, family.model.alphas_cumprod)


def test_gradients_are_those_of_finite_differences(family: Family) -> None:
    model = family.model
    batch = next(dataset(model).batches(2))
    vectors = words(model)["zz-cat"]
    with model.training():
        training_loss(model, batch, {"zz-cat": vectors}).mean().backward()
        for name, each in vectors.items():
            direction = each.grad / each.grad.norm()
            step = 0.02
            up, down = (
                training_loss(model, batch, {"zz-cat": vectors | {name: each.detach() + sign * step * direction}})
                .double()
                .mean()
                .item()
                for sign in (1, -1)
            )
            assert (up - down) / (2 * step) == pytest.approx(each.grad.norm().item(), rel=0.02), name


def dataset(model: DiffusersModel, folder: Path | None = None, frame: Frame | None = None, **options: Any) -> Dataset:
    """Two noisy images of 96 x 64 px, or those of a folder."""
    import tempfile

    with tempfile.TemporaryDirectory() as own:
        if folder is None:
            folder = Path(own)
            for number in range(2):
                pixels = np.random.default_rng(number).integers(0, 256, (64, 96, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
        prompter = Prompter("zz-cat", ["a photo of [name]"])
        return load_dataset(folder, model, frame or Frame((64, 64)), prompter, DatasetOptions(**options))


def test_sdxl_is_given_the_size_of_the_image_and_its_crop(opened: Callable[[str], Family]) -> None:
    sizes = next(dataset(opened("sdxl").model).batches(1)).images.sizes
    assert sizes.tolist() == [[64, 96, 0, 16, 64, 64]]


def test_text_is_pooled_at_its_end_wherever_the_word_stands(opened: Callable[[str], Family]) -> None:
    """Vectors stand on an id that is there already, so that nothing mistakes them for the end."""
    pipeline, model = opened("sdxl").pipeline, opened("sdxl").model
    own = words(model, 1)
    table = pipeline.text_encoder_2.get_input_embeddings()
    ids = pipeline.tokenizer_2(["a cat ! of"], padding="max_length", max_length=77, return_tensors="pt").input_ids
    place = (ids[0] == 0).nonzero()[0].item()

    def splice(_module: Any, _inputs: Any, found: Tensor) -> Tensor:
        return found.index_put((torch.tensor(0), torch.tensor(place)), own["zz-cat"]["clip_g"][0])

    hook = table.register_forward_hook(splice)
    with torch.no_grad():
        wanted = pipeline.text_encoder_2(ids).text_embeds
        hook.remove()
        states = pipeline.text_encoder_2(ids, output_hidden_states=True)
        assert_close(model.encode_prompts(["a cat zz-cat of"], own).pooled, wanted)
    assert not torch.allclose(wanted, states.text_embeds)


def test_init_text_has_the_tokens_of_both_encoders(opened: Callable[[str], Family]) -> None:
    pipeline, model = opened("sdxl").pipeline, opened("sdxl").model
    rows = model.token_embeddings("red star")
    for name, encoder, tokenizer in (
        ("clip_l", pipeline.text_encoder, pipeline.tokenizer),
        ("clip_g", pipeline.text_encoder_2, pipeline.tokenizer_2),
    ):
        ids = tokenizer("red star", add_special_tokens=False).input_ids
        assert torch.equal(rows[name], encoder.get_input_embeddings().weight[ids].detach())
        assert torch.equal(model.token_tables()[name], encoder.get_input_embeddings().weight)
    assert list(model.token_tables()) == ["clip_l", "clip_g"]


@pytest.mark.parametrize("name", ["sd2", "sdxl"])
def test_the_library_reads_our_files_and_says_the_same_with_them(
    name: str, opened: Callable[[str], Family], tmp_path: Path
) -> None:
    model, pipeline = opened(name).model, families.pipeline(name)
    own = words(model, 2)
    vectors = {key: each.detach() for key, each in own["zz-cat"].items()}
    formats.write(Embedding("zz-cat", vectors), tmp_path / "learned_embeds.safetensors", "diffusers")
    pipeline.load_textual_inversion(str(tmp_path / "learned_embeds.safetensors"), tokenizer=pipeline.tokenizer)
    if name == "sdxl":
        second = str(tmp_path / "learned_embeds_2.safetensors")
        pipeline.load_textual_inversion(second, text_encoder=pipeline.text_encoder_2, tokenizer=pipeline.tokenizer_2)
        pipeline.text_encoder_2.config.eos_token_id = 49407  # or the library pools at the new token (peers.md 4.6)
        pipeline.text_encoder_2.text_model.eos_token_id = 49407
    with torch.no_grad():
        hidden, pooled = encoded(pipeline, ["a photo of <zz-cat> on grass"])
        cond = model.encode_prompts(["a photo of zz-cat on grass"], own)
    assert_close(cond.hidden, hidden)
    if pooled is not None:
        assert_close(cond.pooled, pooled)


def test_inpainting_takes_the_whole_image_or_its_own_mask(opened: Callable[[str], Family], tmp_path: Path) -> None:
    model = opened("sd1-inpainting").model
    pixels = np.random.default_rng(3).integers(0, 256, (64, 64, 3), np.uint8)
    whole, masked = tmp_path / "whole", tmp_path / "masked"
    for folder in (whole, masked):
        folder.mkdir()
    Image.fromarray(pixels).save(whole / "a.png")
    alpha = np.zeros((64, 64, 1), np.uint8)
    alpha[:32] = 255
    Image.fromarray(np.concatenate([pixels, alpha], 2)).save(masked / "a.png")
    everywhere = next(dataset(model, whole).batches(1)).images.masked
    half = next(dataset(model, masked, Frame((64, 64), use_alpha=True)).batches(1)).images.masked
    assert everywhere.shape == half.shape == (1, 5, 8, 8)
    assert everywhere[:, 0].all()
    assert half[0, 0, :4].all()
    assert not half[0, 0, 4:].any()
    grey, _ = model.encode_images(torch.zeros(1, 3, 64, 64))
    assert torch.equal(everywhere[:, 1:], grey)
    left = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
    left[:, :, :32] = 0
    assert_close(half[:, 1:], model.encode_images(left)[0])


def test_what_it_predicts_can_be_chosen(opened: Callable[[str], Family]) -> None:
    folder = str(opened("sdxl").folder)
    chosen = load(folder, "cpu", ModelOptions(prediction_type="v_prediction", zero_terminal_snr="on"))
    assert chosen.spec == KINDS["sdxl-v"]
    assert torch.equal(chosen.alphas_cumprod, opened("sdxl-v").model.alphas_cumprod)
    with pytest.raises(ConfigError, match=r"found on with epsilon prediction.*choose the prediction type v_prediction"):
        load(folder, "cpu", ModelOptions(zero_terminal_snr="on"))
    plain = load(str(opened("sdxl-v").folder), "cpu", ModelOptions(zero_terminal_snr="off"))
    assert torch.equal(plain.alphas_cumprod, opened("sdxl").model.alphas_cumprod)


def test_images_are_drawn(family: Family) -> None:
    image = generate(family.model, GenerationRequest("a zz-cat", steps=2), words(family.model))
    assert image.size == (64, 64)
    assert np.asarray(image).std() > 1
    other = generate(family.model, GenerationRequest("a zz-cat", "dog", steps=2), words(family.model))
    assert np.asarray(other).tolist() != np.asarray(image).tolist()


def test_exclamation_marks_are_text_though_one_of_them_fills_up(opened: Callable[[str], Family]) -> None:
    """As OpenCLIP's own tokenizer has it: the library would take them for its filler, and count others than CLIP-L."""
    model = opened("sdxl").model
    for text, ids in (("hello world!", [3306, 1002, 256]), ("!!!", [995]), ("wow!!!, !?", [2781, 11194, 267, 6004])):
        assert [encoder.token_ids(text) for encoder in model.text_encoders] == [ids, ids]
    hidden = model.encode_prompts(["!!!, " * 37 + "end", "short"], {}).hidden
    assert hidden.shape == (2, 77, 192)


def test_text_of_several_chunks_is_pooled_in_its_first(opened: Callable[[str], Family]) -> None:
    model = opened("sdxl").model
    long, short = "red " * 80 + "star", "a cat"
    with torch.no_grad():
        both = model.encode_prompts([long, short], {})
        alone = [model.encode_prompts([each], {}) for each in ("red " * 75, short)]
    assert both.hidden.shape == (2, 154, 192)
    assert_close(both.pooled, torch.cat([each.pooled for each in alone]))
    assert_close(both.hidden[1:, :77], alone[1].hidden)


def test_emphasis_weighs_each_encoders_states_by_themselves_and_leaves_the_pooled_ones(
    opened: Callable[[str], Family],
) -> None:
    model = opened("sdxl").model
    with torch.no_grad():
        plain = model.encode_prompts(["a red star"], {})
        weighed = model.encode_prompts(["a (red:1.5) star"], {})
    weights = torch.ones(77)
    weights[2] = 1.5
    parts = plain.hidden.split([encoder.width for encoder in model.text_encoders], -1)
    after = [part * weights[:, None] for part in parts]
    expected = [each * (part.mean() / each.mean()) for each, part in zip(after, parts, strict=True)]
    assert_close(weighed.hidden, torch.cat(expected, -1))
    assert torch.equal(weighed.pooled, plain.pooled)


def test_encoders_that_read_a_text_otherwise_fill_each_other_up(opened: Callable[[str], Family]) -> None:
    """Beside a <, &amp; is three tokens of CLIP's and one of OpenCLIP's."""
    model, prompt = opened("sdxl").model, f"<b>{'&amp; ' * 40}"
    counts = [len(encoder.tokenize(prompt, {}).chunks) for encoder in model.text_encoders]
    assert counts[0] > counts[1]
    assert model.encode_prompts([prompt, "a"], {}).hidden.shape[1] == 77 * counts[0]


@pytest.mark.parametrize(
    ("size", "wanted", "sizes"),
    [
        ((3000, 2000), (512, 512), (2000, 3000, 0, 128, 512, 512)),
        ((201, 123), None, (123, 201, 1, 0, 120, 200)),
        ((100, 400), (64, 64), (400, 100, 96, 0, 64, 64)),
        ((32, 32), (64, 64), (32, 32, 0, 0, 64, 64)),
    ],
)
def test_sizes_are_of_the_original_and_the_crop_of_the_resized_image(
    size: tuple[int, int], wanted: tuple[int, int] | None, sizes: tuple[int, ...], tmp_path: Path
) -> None:
    Image.new("RGB", size, "red").save(tmp_path / "a.jpg")
    assert load_image(tmp_path / "a.jpg", Frame(wanted)).sizes == sizes
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.new("RGB", size[::-1], "red").save(tmp_path / "b.jpg", exif=exif)
    assert load_image(tmp_path / "b.jpg", Frame(wanted)).sizes == sizes


@pytest.mark.parametrize("name", ["sdxl", "sd1-inpainting"])
def test_the_loops_of_bench_run_on_it(name: str, opened: Callable[[str], Family]) -> None:
    model = opened(name).model
    with model.training():
        bare_step(model, dataset(model), 2)()
    named = replace(dataset(model), prompter=Prompter(NAME, ["a photo of [name]"]))
    events = new_trainer(model, named, 2, 3).run()
    parts = time_by_part(model, lambda: next(events), 3)
    assert min(parts.values()) > 0
    events.close()
