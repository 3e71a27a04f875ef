"""Folders and single files, whole and damaged, of the right kind and of others."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import types
from pathlib import Path

import ldm_export
import pytest
import torch
import yaml
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from ti_trainer import tiny_model
from ti_trainer.errors import ConfigError, ModelError
from ti_trainer.host import ModelOptions
from ti_trainer.hosts.diffusers import loading
from ti_trainer.hosts.diffusers import single_file as single_file_module
from ti_trainer.hosts.diffusers.loading import load, pick_dtype
from ti_trainer.hosts.diffusers.model import DiffusersModel
from ti_trainer.model import ImageConditioning


def assert_same(one: DiffusersModel, other: DiffusersModel) -> None:
    """Every part computes the same."""
    generator = torch.Generator().manual_seed(0)
    latents, pixels = torch.randn(2, 4, 8, 8, generator=generator), torch.rand(1, 3, 64, 64, generator=generator) * 2 - 1
    words = {"thing": {"clip_l": torch.randn(2, 64, generator=generator)}}
    timesteps = torch.tensor([3, 900])
    outputs = []
    for model in (one, other):
        with torch.no_grad():
            cond = model.encode_prompts(["a photo of thing", "a big red star, at night"], words)
            parts = [
                cond.hidden,
                model.predict(latents, timesteps, cond, ImageConditioning(torch.zeros(0, 6))),
                *model.encode_images(pixels),
                model.decode(latents[:1]),
            ]
        outputs.append([*parts, model.alphas_cumprod, model.token_embeddings("a star")["clip_l"]])
    for first, second in zip(*outputs, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-6)
    assert one.spec == other.spec
    assert one.default_size_px == other.default_size_px == 64
    assert one.widths == other.widths


def test_only_the_embedded_model_is_held_to_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    monkeypatch.setattr(loading, "_default_threads", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for model in ("embedded", "v1-5.safetensors"):
        loading._use_threads(model, torch.device("cpu"))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    loading._use_threads("embedded", torch.device("cpu"))
    assert used == [1, 4]


def test_a_folder_is_loaded(model: DiffusersModel, tmp_path: Path) -> None:
    folder = tmp_path / "my modèl"
    shutil.copytree(tiny_model.MODEL, folder)
    loaded = load(str(folder), "cpu")
    assert_same(loaded, model)
    assert (loaded.name, model.name) == ("my modèl", "embedded")
    weights = tiny_model.MODEL / "unet" / "diffusion_pytorch_model.safetensors"
    assert loaded.checkpoint_hash == model.checkpoint_hash == hashlib.sha256(weights.read_bytes()).hexdigest()[:10]


def test_a_safetensors_checkpoint_is_loaded(model: DiffusersModel, single_file: Path) -> None:
    loaded = load(str(single_file), "cpu")
    assert_same(loaded, model)
    assert loaded.name == "tiny sd"
    assert loaded.checkpoint_hash == hashlib.sha256(single_file.read_bytes()).hexdigest()[:10]


@pytest.fixture
def lightning(monkeypatch: pytest.MonkeyPatch) -> type:
    """Stands for pytorch-lightning's ModelCheckpoint, which is beside the weights of the original downloads."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": name})
    for parent in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    monkeypatch.setitem(sys.modules, name, module)
    return module.ModelCheckpoint


@pytest.mark.parametrize("zipped", [True, False])
def test_a_ckpt_with_what_lightning_leaves_in_it_is_loaded(
    zipped: bool, model: DiffusersModel, tmp_path: Path, lightning: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tiny.ckpt"
    weights = {
        **ldm_export.checkpoint(model),
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(7, dtype=torch.int32),
        "betas": torch.ones(1000),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
    }
    beside = {
        "epoch": 3,
        "global_step": 470_000,
        "callbacks": {lightning: {"best": torch.tensor(0.3)}},
        "lr_schedulers": [{"a": None}],
    }
    torch.save({"state_dict": weights, **beside}, path, _use_new_zipfile_serialization=zipped)
    monkeypatch.undo()  # the class is not here when it is read
    ldm_export.describe(model, path, tiny_model.MODEL / "text_encoder")
    assert_same(load(str(path), "cpu"), model)


def test_half_precision_weights_and_v_prediction(model: DiffusersModel, tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    save_file({key: value.half().contiguous() for key, value in ldm_export.checkpoint(model).items()}, path)
    ldm_export.describe(model, path, tiny_model.MODEL / "text_encoder", parameterization="v")
    loaded = load(str(path), "cpu")
    assert loaded.spec.prediction_type == "v_prediction"
    assert loaded.dtype == loaded.vae.dtype == torch.float32


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("marker",)


class Unknown:
    pass


def test_a_pickle_that_would_run_code_is_refused(
    model: DiffusersModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for extra, words in ((Malicious(), "mkdir"), (Unknown(), "Unknown")):
        torch.save({"state_dict": {"model.diffusion_model.x": torch.ones(1)}, "callbacks": extra}, "bad.ckpt")
        with pytest.raises(ModelError, match=rf"bad\.ckpt.*{words}.*Nothing in it was run"):
            load("bad.ckpt", "cpu")
    assert not Path("marker").exists()


@pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
def test_damaged_checkpoints_are_one_clear_error(ending: str, single_file: Path, tmp_path: Path) -> None:
    path = tmp_path / f"cut{ending}"
    if ending == ".ckpt":
        torch.save(load_file(single_file), path)
    else:
        shutil.copy(single_file, path)
    whole = path.read_bytes()
    shutil.copy(single_file.with_suffix(".yaml"), path.with_suffix(".yaml"))
    for content in (whole[: len(whole) // 2], whole[:100], b"", b"<html>404</html>"):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"cut\.\w+ cannot be read") as caught:
            load(str(path), "cpu")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("conditioner.embedders.0.model.ln_final.weight", "SDXL refiner"),
        ("model.diffusion_model.x_embedder.proj.weight", "Stable Diffusion 3"),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "LoRA"),
        ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "LoRA"),
        ("emb_params", "embedding"),
        ("anything", "not a Stable Diffusion checkpoint"),
    ],
)
def test_other_kinds_of_files_are_refused_by_name(key: str, kind: str, tmp_path: Path) -> None:
    weights = {key: torch.ones(2, 4)}
    if "embedd" in key:
        weights["model.diffusion_model.input_blocks.0.0.weight"] = torch.ones(4)
    save_file(weights, tmp_path / "other.safetensors")
    with pytest.raises(
        ModelError, match=rf"other\.safetensors is .*{kind}.*expected a whole checkpoint of SD 1\.x, SD 2\.x or SDXL"
    ):
        load(str(tmp_path / "other.safetensors"), "cpu")


def test_a_checkpoint_of_another_shape_says_how_to_describe_it(
    model: DiffusersModel, single_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "odd.safetensors"
    weights = load_file(single_file)
    del weights["model.diffusion_model.middle_block.1.proj_in.weight"]
    save_file(weights, path)
    ldm_export.describe(model, path, tiny_model.MODEL / "text_encoder")
    with pytest.raises(ModelError, match=r"odd\.safetensors is not a whole SD 1\.x checkpoint.*odd\.yaml") as caught:
        load(str(path), "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "model: 3",
        "a: [",
        "[]",
        "model: {params: {unet_config: 1}}",
        "model: {params: {first_stage_config: {}}}",
        "model: {params: }",
    ],
)
def test_a_configuration_that_makes_no_sense_is_one_clear_error(text: str, single_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.symlink_to(single_file)
    path.with_suffix(".yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=r"a\.yaml"):
        load(str(path), "cpu")


def test_models_with_other_inputs_are_refused_by_name(model: DiffusersModel, single_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "pix2pix.safetensors"
    weights = load_file(single_file)
    first = "model.diffusion_model.input_blocks.0.0.weight"
    weights[first] = torch.cat([weights[first], torch.zeros(64, 4, 3, 3)], 1)
    save_file(weights, path)
    ldm_export.describe(model, path, tiny_model.MODEL / "text_encoder")
    with pytest.raises(ModelError, match=r"InstructPix2Pix.*expected Stable Diffusion 1\.x, 2\.x or SDXL"):
        load(str(path), "cpu")


@pytest.mark.parametrize(
    ("part", "key", "value"), [("unet", "cross_attention_dim", 1024), ("scheduler", "prediction_type", "sample")]
)
def test_folders_of_other_kinds_are_refused(part: str, key: str, value: object, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model.MODEL, folder)
    file = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(ModelError, match=str(folder)) as caught:
        load(str(folder), "cpu")
    assert "\n" not in str(caught.value)


def test_a_wrong_path_is_no_download() -> None:
    for name in ("runwayml/stable-diffusion-v1-5", "nowhere.safetensors", "/", ""):
        with pytest.raises(ModelError, match="There is no model at"):
            load(name, "cpu")


def test_precisions_and_devices() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert pick_dtype("auto", cpu) == pick_dtype("fp32", cpu) == torch.float32
    assert pick_dtype("bf16", cpu) == torch.bfloat16
    assert pick_dtype("fp16", cuda) == torch.float16
    with pytest.raises(ModelError, match=r"fp16 needs a CUDA device.*cpu.*bf16"):
        load("embedded", "cpu", ModelOptions("fp16"))
    for device in ("toaster", "cpu:x", *(["cuda"] if not torch.cuda.is_available() else [])):
        with pytest.raises(ModelError, match=rf"{device}.*try auto or cpu") as caught:
            load("embedded", device)
        assert "\n" not in str(caught.value)
    loaded = load("embedded", "cpu", ModelOptions("bf16"))
    assert (loaded.dtype, loaded.vae.dtype, loaded.needs_loss_scaling) == (torch.bfloat16, torch.float32, False)


@pytest.mark.parametrize("skip", [0, 4, -1])
def test_clip_skip_stays_within_the_text_encoder(skip: int) -> None:
    with pytest.raises(ConfigError, match=f"found {skip}, expected 1 to 3"):
        load("embedded", "cpu", ModelOptions(clip_skip=skip))


@pytest.mark.parametrize(
    ("family", "counts", "size", "heads", "scale"),
    [
        ("SD 1.x", [859_520_964, 83_653_863], 64, 8, 0.18215),
        ("SD 2.x", [865_910_724, 83_653_863], 64, [5, 10, 20, 20], 0.18215),
        ("SDXL", [2_567_463_684, 83_653_863], 128, [5, 10, 20], 0.13025),
    ],
)
def test_without_a_configuration_the_shape_is_that_of_its_family(
    family: str, counts: list[int], size: int, heads: object, scale: float, tmp_path: Path
) -> None:
    marks = {"conditioner.embedders.1.model.ln_final.weight": torch.ones(1)} if family == "SDXL" else {}
    weights = {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(320, 4, 3, 3), **marks}
    shapes = single_file_module._shapes(single_file_module.SHAPES[family], weights, tmp_path / "a.ckpt")
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel.from_config(shapes[0]), AutoencoderKL.from_config(shapes[1])
    assert [sum(each.numel() for each in module.parameters()) for module in (unet, vae)] == counts  # as published
    assert unet.config.attention_head_dim == heads
    assert vae.config.scaling_factor == scale
    assert single_file_module.SIZES_PX[family] == 8 * size


def test_the_exported_configuration_is_what_users_have_beside_their_files(single_file: Path) -> None:
    params = yaml.safe_load(single_file.with_suffix(".yaml").read_text())["model"]["params"]
    assert {"unet_config", "first_stage_config", "cond_stage_config", "scale_factor"} <= set(params)
