"""Models as people have them on their disks: other layouts, damaged, of other kinds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import families
import ldm_export
import pytest
import torch
from safetensors.torch import load_file, save_file

from ti_trainer import tiny_model
from ti_trainer.errors import ModelError
from ti_trainer.hosts.diffusers import single_file
from ti_trainer.hosts.diffusers.loading import load, look
from ti_trainer.hosts.diffusers.model import DiffusersModel


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return families.save("sdxl", tmp_path / "xl")


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    """Makes a single file of a family, after something was done to its weights; with metadata."""

    def make(family: str, change: Callable[[dict], None] = lambda weights: None, **metadata: str) -> Path:
        model = families.opened(family)
        weights = {key: value.contiguous() for key, value in ldm_export.checkpoint(model).items()}
        change(weights)
        path = tmp_path / f"{family}.safetensors"
        save_file(weights, path, metadata)
        ldm_export.describe(model, path, families.saved(family) / "text_encoder")
        return path

    return make


def hidden(model: DiffusersModel) -> torch.Tensor:
    with torch.no_grad():
        return model.encode_prompts(["a cat"], {}).hidden


def test_weights_in_half_precision_only_are_read(tmp_path: Path) -> None:
    wanted = hidden(families.opened("sdxl"))
    half = tmp_path / "half"
    families.pipeline("sdxl").to(torch.float16).save_pretrained(half, variant="fp16")
    assert not list(half.glob("*/model.safetensors"))
    torch.testing.assert_close(hidden(load(str(half), "cpu")), wanted, atol=5e-3, rtol=0)


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("text_encoder_2", "text_projection.weight"),
        ("text_encoder", "final_layer_norm.weight"),
        ("unet", "conv_out.bias"),
        ("vae", "encoder.conv_in.weight"),
    ],
)
def test_what_is_missing_is_said_and_not_made_up(part: str, key: str, folder: Path) -> None:
    path = next((folder / part).glob("*.safetensors"))
    weights = load_file(path)
    del weights[next(name for name in weights if name.endswith(key))]
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ModelError, match=rf"{part} lacks weights \(.*{key}\): it is damaged"):
        load(str(folder), "cpu")


def test_pickles_are_named_and_not_read(folder: Path) -> None:
    path = next((folder / "unet").glob("*.safetensors"))
    path.rename(path.with_suffix(".bin"))
    with pytest.raises(ModelError, match=r"unet has no \.safetensors\. Pickles \(\.bin\) are not read"):
        load(str(folder), "cpu")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("model_index.json", "[1]", "cannot be read"),
        ("model_index.json", "{", "cannot be read"),
        ("model_index.json", '{"_class_name": "FluxPipeline", "transformer": ["a", "b"]}', "is a FluxPipeline"),
        ("scheduler/scheduler_config.json", '{"_class_name": "FlowMatchEulerDiscreteScheduler"}', "flow matching"),
        ("scheduler/scheduler_config.json", '{"_class_name": "EDMEulerScheduler"}', "EDM"),
        ("scheduler/scheduler_config.json", "", "cannot be read"),
        ("scheduler/scheduler_config.json", '{"_class_name": 5}', "cannot be read"),
        ("scheduler/scheduler_config.json", '{"num_train_timesteps": 0}', "num_train_timesteps 0, expected 1"),
        ("unet/config.json", "[]", "holds list, expected an object of settings"),
        ("unet/config.json", '{"norm_num_groups": 0}', "cannot be read"),
        ("text_encoder/config.json", '{"attn_implementation": {"": "evil/k"}}', "code from elsewhere"),
        ("text_encoder_2/config.json", '{"_attn_implementation": "evil/k"}', "code from elsewhere"),
        ("text_encoder/config.json", '{"quantization_config": {"quant_method": "x"}}', "not supported"),
    ],
)
def test_folders_of_other_kinds_and_damaged_ones_are_one_clear_error(
    file: str, content: str, said: str, folder: Path
) -> None:
    (folder / file).write_text(content)
    with pytest.raises(ModelError, match=said) as caught:
        load(str(folder), "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("lost", ["merges.txt", "vocab.json", "*", ""])
def test_a_tokenizer_that_lacks_files_or_half_of_its_merges_is_not_used(lost: str, folder: Path) -> None:
    tokenizer = folder / "tokenizer_2"
    shutil.rmtree(tokenizer)
    shutil.copytree(tiny_model.MODEL / "tokenizer", tokenizer)
    assert look(str(folder)), "as it was"
    for file in tokenizer.glob(lost or "none"):
        file.unlink()
    if not lost:
        merges = (tokenizer / "merges.txt").read_text(encoding="utf-8")
        (tokenizer / "merges.txt").write_text("\n".join(merges.splitlines()[:9000]), encoding="utf-8")
    with pytest.raises(ModelError, match="tokenizer_2: the tokenizer is damaged or missing files"):
        look(str(folder))


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "~nobody-of-this-name/x"])
def test_a_name_that_can_be_no_path_is_one_clear_error(name: str) -> None:
    with pytest.raises(ModelError, match="There is no model at"):
        look(name)


def test_a_refiner_is_refused_by_name(folder: Path) -> None:
    (folder / "text_encoder").rename(folder / "gone")
    with pytest.raises(ModelError, match="is an SDXL refiner"):
        load(str(folder), "cpu")


def test_other_samplers_configurations_are_the_same_noise(folder: Path) -> None:
    wanted = families.opened("sdxl")
    config = folder / "scheduler" / "scheduler_config.json"
    values = json.loads(config.read_text()) | {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True}
    del values["rescale_betas_zero_snr"]
    config.write_text(json.dumps(values))
    found = load(str(folder), "cpu")
    assert found.spec == wanted.spec
    assert torch.equal(found.alphas_cumprod, wanted.alphas_cumprod)


def drop(weights: dict, prefix: str) -> None:
    for key in [key for key in weights if key.startswith(prefix)]:
        del weights[key]


@pytest.mark.parametrize(
    ("family", "change", "said"),
    [
        ("sd1-inpainting", lambda weights: drop(weights, "cond_stage_model."), "is a U-Net without text encoders"),
        ("sd2", lambda weights: drop(weights, "first_stage_model."), "is a checkpoint without VAE"),
        ("sdxl", lambda weights: weights.update({"edm_vpred.sigma_max": torch.ones(1)}), "EDM"),
    ],
)
def test_files_that_lack_something_or_are_of_another_kind_are_refused_by_name(
    family: str, change: Callable[[dict], None], said: str, file: Callable[..., Path]
) -> None:
    with pytest.raises(ModelError, match=said):
        load(str(file(family, change)), "cpu")


def test_the_oldest_names_of_clips_weights_are_known(file: Callable[..., Path]) -> None:
    def bare(weights: dict) -> None:
        for key in [key for key in weights if "transformer.text_model." in key]:
            weights[key.replace("text_model.", "")] = weights.pop(key)

    found = load(str(file("sdxl", bare)), "cpu")
    assert torch.equal(hidden(found), hidden(families.opened("sdxl")))


def test_half_precision_and_what_a_file_has_besides_do_no_harm(file: Callable[..., Path]) -> None:
    def changed(weights: dict) -> None:
        for key in weights:
            weights[key] = weights[key].half()
        weights["model_ema.decay"] = torch.ones(1)
        weights["conditioner.embedders.1.model.logit_scale"] = torch.ones(())
        weights["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]

    found = load(str(file("sdxl", changed)), "cpu")
    torch.testing.assert_close(hidden(found), hidden(families.opened("sdxl")), atol=5e-3, rtol=0)


@pytest.mark.parametrize(
    ("metadata", "kind"),
    [
        ({"modelspec.prediction_type": "v"}, "v_prediction"),
        ({"modelspec.predict_key": "v_prediction"}, "v_prediction"),
        ({"modelspec.predict_key": "epsilon"}, "epsilon"),
        ({"modelspec.predict_key": "who knows"}, "epsilon"),
    ],
)
def test_metadata_tell_what_it_predicts(metadata: dict, kind: str, file: Callable[..., Path]) -> None:
    path = file("sd1", **metadata)
    assert load(str(path), "cpu").spec.prediction_type == kind
    assert look(str(path))[0].prediction_type == kind


def test_sd_2_is_asked_what_it_predicts_where_its_file_does_not_say(file: Callable[..., Path]) -> None:
    def made_v(weights: dict) -> None:
        """Says of a constant what a v model says: far below it."""
        weights["model.diffusion_model.out.2.weight"] *= 0
        weights["model.diffusion_model.out.2.bias"] = torch.full((4,), -2.0)

    path = file("sd2", made_v)
    assert load(str(path), "cpu").spec.prediction_type == "v_prediction"
    assert look(str(path))[0].prediction_type == "v_prediction"


def test_the_published_configuration_of_768_px_models_says_64() -> None:
    said = {"image_size": 64, "parameterization": "v"}
    assert single_file._sample_size(said, "SD 2.x", True) == 96
    assert single_file._sample_size(said, "SD 2.x", False) == 64
    assert single_file._sample_size({}, "SDXL", False) == 128


@pytest.mark.parametrize(("in_file", "used"), [(24, 23), (23, 23), (3, 2)])
def test_sd_2_uses_all_layers_but_the_last_even_where_that_is_left_out(in_file: int, used: int) -> None:
    from ti_trainer.hosts.diffusers import single_file_text

    encoder = families.clip(64, "gelu")
    weights = ldm_export.open_clip(encoder, "m.")
    layer = {key: value for key, value in weights.items() if "resblocks.0." in key}
    for number in range(in_file):
        weights |= {key.replace("resblocks.0.", f"resblocks.{number}."): value for key, value in layer.items()}
    for number in range(in_file, 3):
        drop(weights, f"m.transformer.resblocks.{number}.")
    module, _ = single_file_text.open_clip_penultimate(weights, "m.")
    assert module.config.num_hidden_layers == used
