"""Models as the WebUI takes them: a checkpoint, its .yaml and a folder with the text encoder's shape and vocabulary."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(each) for each in (TESTS.parent, TESTS / "hosts" / "diffusers") if str(each) not in sys.path]

import families  # noqa: E402 - of the neighbouring tests
import hosts  # noqa: E402
import ldm_export  # noqa: E402
import small_models  # noqa: E402

from ti_trainer import tiny_model  # noqa: E402
from ti_trainer.hosts.diffusers.loading import load  # noqa: E402
from ti_trainer.hosts.diffusers.model import DiffusersModel  # noqa: E402

OPEN_CLIP_SHAPES = "open_clip"  # folder of the data folder: start_host.py tells the library of them
SDXL_YAML = Path("repositories/generative-models/configs/inference/sd_xl_base.yaml")
SD2_YAML = Path("repositories/stable-diffusion-stability-ai/configs/stable-diffusion/v2-{}inference.yaml")
SD1_YAML = Path("configs/v1-{}inference.yaml")
MARKS = {"v_prediction": "v_pred", "zero_terminal_snr": "ztsnr"}  # how SDXL files say so


def export_family(name: str, webui: Path, data: Path) -> None:
    """A tiny random model of a family of `families`, as data/models/Stable-diffusion/<name>.safetensors."""
    folder = families.save(name, data / "diffusers" / name)
    for tokenizer in folder.glob("tokenizer*"):  # transformers 5 leaves out what Forge's older one reads
        for file in ("vocab.json", "merges.txt"):
            shutil.copyfile(tiny_model.MODEL / "tokenizer" / file, tokenizer / file)
    checkpoint = data / "models" / "Stable-diffusion" / f"{name}.safetensors"
    export(load(str(folder), "cpu"), webui, checkpoint, folder=folder)


def export(
    model: DiffusersModel,
    webui: Path,
    checkpoint: Path,
    dtype: torch.dtype = torch.float32,
    folder: Path = tiny_model.MODEL,
) -> None:
    """Write the checkpoint and what the host needs to build the model: see `_write_yaml` and `small_models`.

    `folder` is the model in diffusers' layout.
    """
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    weights = {key: value.to(dtype).contiguous() for key, value in ldm_export.checkpoint(model).items()}
    if model.spec.family == "SDXL" and model.spec.prediction_type == "v_prediction":
        weights[MARKS["v_prediction"]] = torch.zeros(0)
        if model.spec.zero_terminal_snr:
            weights[MARKS["zero_terminal_snr"]] = torch.zeros(0)
    save_file(weights, checkpoint)
    _list_shape(model, checkpoint, folder)
    if hosts.kind_of(webui).yaml_beside:
        _write_yaml(model, webui, checkpoint)
    elif model.spec.prediction_type == "v_prediction" and model.spec.family != "SDXL":
        checkpoint.with_suffix(".yaml").write_text("model: {params: {parameterization: v}}\n", encoding="utf-8")


def _list_shape(model: DiffusersModel, checkpoint: Path, folder: Path) -> None:
    """Add the model to those that Forge's and reForge's loaders are taught."""
    unet = ldm_export.configuration(model, folder)["model"]["params"]["unet_config"]["params"]
    config = {
        "context_dim": unet["context_dim"],
        "model_channels": unet["model_channels"],
        "in_channels": unet["in_channels"],
        "use_linear_in_transformer": model.unet.config.use_linear_projection,
        "adm_in_channels": unet.get("adm_in_channels"),
        "use_temporal_attention": False,
    }
    heads = {name: unet.get(name, -1) for name in ("num_heads", "num_head_channels")}
    like = {"SDXL": "SDXL", "SD 2.x": "SD20"}.get(model.spec.family, "SD15")
    file = checkpoint.parents[2] / small_models.FILE
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    shape = {"like": like, "unet_config": config, "unet_extra_config": heads, "folder": str(folder)}
    file.write_text(json.dumps([*known, shape]), encoding="utf-8")


def _write_yaml(model: DiffusersModel, webui: Path, checkpoint: Path) -> None:
    """The .yaml and `<checkpoint>-clip/`; the .yaml completes that of its family in the WebUI."""
    clip = checkpoint.with_name(f"{checkpoint.stem}-clip")  # instead of the name of a model to be downloaded
    shutil.copytree(tiny_model.MODEL / "tokenizer", clip, dirs_exist_ok=True)
    model.text_encoders[0].module.config.save_pretrained(clip)
    ours = ldm_export.configuration(model, clip)["model"]["params"]
    base = yaml.safe_load((webui / _yaml(model)).read_text(encoding="utf-8"))
    params = base["model"]["params"]
    if model.spec.family == "SDXL":
        _complete_sgm(params, ours, clip, _open_clip(model, checkpoint))
    else:
        if model.spec.family == "SD 2.x":
            ours["cond_stage_config"]["params"] = {"arch": _open_clip(model, checkpoint)}
        base["model"]["params"] = _merged(params, ours)
    checkpoint.with_suffix(".yaml").write_text(yaml.safe_dump(base), encoding="utf-8")


def _yaml(model: DiffusersModel) -> str:
    name = {"SDXL": SDXL_YAML, "SD 2.x": SD2_YAML}.get(model.spec.family, SD1_YAML)
    return str(name).format("inpainting-" * model.spec.inpainting)


def _complete_sgm(params: dict[str, Any], ours: dict[str, Any], clip: Path, arch: str) -> None:
    """SDXL's configuration has other names around the same parts."""
    params["scale_factor"] = ours["scale_factor"]
    params["network_config"]["params"] |= ours["unet_config"]["params"]
    params["first_stage_config"]["params"]["ddconfig"] |= ours["first_stage_config"]["params"]["ddconfig"]
    clip_l, clip_g, *_ = params["conditioner_config"]["params"]["emb_models"]
    layers = json.loads((clip / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    clip_l["params"] |= {"version": str(clip), "layer_idx": layers - 1}
    clip_g["params"] |= {"arch": arch}


def _open_clip(model: DiffusersModel, checkpoint: Path) -> str:
    """The name of an architecture that start_host.py tells the library of; SD 2.x has a last layer that nobody uses."""
    config = model.text_encoders[-1].module.config
    read = {
        "width": config.hidden_size,
        "heads": config.num_attention_heads,
        "layers": config.num_hidden_layers + (model.spec.family == "SD 2.x"),
    }
    seen = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 32}
    file = checkpoint.parents[2] / OPEN_CLIP_SHAPES / f"tiny-{checkpoint.stem}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"embed_dim": config.projection_dim, "vision_cfg": seen, "text_cfg": read}), encoding="utf-8")
    return file.stem


def _merged(base: Any, ours: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(ours, dict):
        return ours
    return {key: _merged(base.get(key), ours[key]) if key in ours else base[key] for key in base | ours}
