"""Single-file checkpoints (.safetensors, .ckpt) of SD 1.x, SD 2.x and SDXL in the layout of the original code and the WebUI.

As in the WebUI, a configuration `<checkpoint>.yaml` next to the file gives its shape; without one it is its family's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    create_unet_diffusers_config_from_ldm,
    create_vae_diffusers_config_from_ldm,
)
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ti_trainer import formats
from ti_trainer.errors import ModelError
from ti_trainer.formats import tensor_names
from ti_trainer.hosts.diffusers import single_file_text
from ti_trainer.hosts.diffusers.components import Components, both_encoders
from ti_trainer.hosts.diffusers.library import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from ti_trainer.hosts.diffusers.model_spec import predicts_v
from ti_trainer.hosts.diffusers.single_file_text import filled
from ti_trainer.hosts.diffusers.text import TextEncoder

Config = dict[str, Any]

_NOISE = {"linear_start": 0.00085, "linear_end": 0.012, "timesteps": 1000}
_VAE = {"z_channels": 4, "in_channels": 3, "out_ch": 3, "ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2}
_UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "attention_resolutions": [4, 2, 1],
    "num_res_blocks": 2,
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": 1,
}
_SD15 = {"num_heads": 8, "context_dim": 768}
_SD2 = {"num_head_channels": 64, "context_dim": 1024, "use_linear_in_transformer": True}
_SDXL = {
    "num_head_channels": 64,
    "context_dim": 2048,
    "use_linear_in_transformer": True,
    "attention_resolutions": [4, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [1, 2, 10],
    "num_classes": "sequential",
    "adm_in_channels": 2816,
}
SIZES_PX = {"SD 1.x": 512, "SD 2.x": 512, "SDXL": 1024}
SD2_V_SIZE_PX = 768
SIZE_EMBEDDING = 256  # channels for each of SDXL's six size values
SHAPES: dict[str, Config] = {
    family: {
        **_NOISE,
        "scale_factor": scale,
        "unet_config": {"params": _UNET | unet},
        "first_stage_config": {"params": {"ddconfig": _VAE}},
    }
    for family, scale, unet in (
        ("SD 1.x", 0.18215, _SD15),
        ("SD 2.x", 0.18215, _SD2),
        ("SDXL", 0.13025, _SDXL),
    )
}
FAMILIES = {  # a key that only this family has
    "conditioner.embedders.1.model.ln_final.weight": "SDXL",
    "cond_stage_model.model.ln_final.weight": "SD 2.x",
    "model.diffusion_model.input_blocks.0.0.weight": "SD 1.x",
}
FOREIGN = {  # a key of another kind of file -> its kind
    "emb_params": "an embedding",
    "conditioner.embedders.0.model.ln_final.weight": "an SDXL refiner",
    "model.diffusion_model.x_embedder.proj.weight": "a Stable Diffusion 3 checkpoint",
    "model.diffusion_model.double_blocks.0.img_attn.qkv.weight": "a Flux checkpoint",
    "embedder.model.ln_final.weight": "an unCLIP checkpoint",
    "depth_model.model.pretrained.act_postprocess3.0.project.0.bias": "a depth checkpoint",
    "cond_stage_model.roberta.embeddings.word_embeddings.weight": "an AltDiffusion checkpoint",
    "edm_mean": "a checkpoint with noise as in EDM",
    "edm_vpred.sigma_max": "a checkpoint with noise as in EDM (CosXL?)",
}
TEXT, VAE = ("cond_stage_model.", "conditioner."), "first_stage_model."
SAYS_V = {"v": True, "v_prediction": True, "epsilon": False, "eps": False}  # in metadata, by kohya's tools and ComfyUI
_WIDTHS = {(768,), (1024,), (1280,), (4096,)}  # of text encoders
EXPECTED = "expected a whole checkpoint of SD 1.x, SD 2.x or SDXL"


def read(path: Path, *, only_shapes: bool = False) -> Components:
    """A checkpoint's components in the file's dtype; ModelError if it is damaged, unsafe, or of another kind.

    With `only_shapes` weights are read only if its spec depends on them, and the components are on the meta device.
    """
    weights, metadata = _state_dict(path, only_shapes)
    family = _family(weights, path)
    config = _config(path, family)
    unet_config, vae_config = _shapes(config, weights, path)
    try:
        with torch.device("meta"):  # initialising a U-Net takes longer than reading the file
            unet, vae = UNet2DConditionModel.from_config(unet_config), AutoencoderKL.from_config(vae_config)
        unet = filled(unet, convert_ldm_unet_checkpoint(weights, unet_config))
        vae = filled(vae, convert_ldm_vae_checkpoint(weights, vae_config))
        text_encoders = _text_encoders(family, config, weights)
    except (KeyError, RuntimeError, IndexError, ValueError, OSError, AttributeError) as error:
        message = (
            f"{path} is not a whole {family} checkpoint: {' '.join(str(error).split())[:200]} ... If its shape is unusual, "
            f"put its configuration next to it as {path.with_suffix('.yaml').name}."
        )
        raise ModelError(message) from error
    is_v = _says_v(config, weights, metadata)
    if is_v is None and family == "SD 2.x" and unet.config.in_channels == 4:
        if only_shapes:
            return read(path)
        is_v = predicts_v(unet.float())
    unet.register_to_config(sample_size=_sample_size(config, family, bool(is_v)))
    scheduler = DDPMScheduler(
        num_train_timesteps=config["timesteps"],
        beta_start=config["linear_start"],
        beta_end=config["linear_end"],
        beta_schedule="scaled_linear",
        prediction_type="v_prediction" if is_v else "epsilon",
        rescale_betas_zero_snr="ztsnr" in weights,
    )
    return Components(unet, vae, text_encoders, scheduler)


def what_is(path: Path) -> str | None:
    """The kind of a file by its tensors' names, such as "a VAE"; None if unknown, ModelError if it has no tensors."""
    weights = formats.read_checkpoint(path, only_shapes=True) if formats.is_pickle(path) else _state_dict(path, True)[0]
    return tensor_names.spec_of(weights) or _embedding(weights)


def _sample_size(config: Config, family: str, is_v: bool) -> int:
    """The size of latents; the published configuration of SD 2's 768 px models gives 64, like that of the 512 px models."""
    stated = config.get("image_size", SIZES_PX[family] // 8)
    return SD2_V_SIZE_PX // 8 if family == "SD 2.x" and is_v and stated == SIZES_PX[family] // 8 else stated


def _state_dict(path: Path, only_shapes: bool) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """The weights, and the metadata of a .safetensors file."""
    if formats.is_pickle(path):
        return formats.read_checkpoint(path), {}
    try:
        with safe_open(path, "pt") as file:
            keys, metadata = list(file.keys()), file.metadata() or {}
            if not only_shapes:
                return {key: file.get_tensor(key) for key in keys}, metadata
            return {key: torch.empty(file.get_slice(key).get_shape(), device="meta") for key in keys}, metadata
    except (SafetensorError, OSError) as error:
        message = f"The checkpoint {path} cannot be read ({error}): it is damaged or not a .safetensors file."
        raise ModelError(message) from error


def _family(weights: Mapping[str, Tensor], path: Path) -> str:
    family = next((family for key, family in FAMILIES.items() if key in weights), None)
    found = next((kind for key, kind in FOREIGN.items() if key in weights), None)
    if found is None and family is None:
        found = tensor_names.spec_of(weights) or _embedding(weights) or "not a Stable Diffusion checkpoint"
    if found is None and not any(key.startswith(TEXT) for key in weights):
        found = "a U-Net without text encoders"
    if found is None and not any(key.startswith(VAE) for key in weights):
        found = "a checkpoint without VAE"
    if found or family is None:
        message = f"{path} is {found}; {EXPECTED}."
        raise ModelError(message)
    return family


def _embedding(weights: Mapping[str, Tensor]) -> str | None:
    """`an embedding` if there are few tensors, of a text encoder's width or name."""
    few = len(weights) <= 3 and all(each.ndim in (1, 2) for each in weights.values())
    known = any(key.startswith("clip_") or each.shape[-1:] in _WIDTHS for key, each in weights.items())
    return "an embedding" if few and known else None


def _config(path: Path, family: str) -> Config:
    """The family's configuration, updated with the one next to the file."""
    beside = path.with_suffix(".yaml")
    if not beside.is_file():
        return SHAPES[family]
    try:
        config = {**SHAPES[family], **yaml.safe_load(beside.read_text(encoding="utf-8"))["model"]["params"]}
        return config | {"unet_config": config.get("network_config") or config["unet_config"]}
    except (UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        message = (
            f"The configuration {beside} cannot be read ({reason}): expected model: params: ... as the original code has it."
        )
        raise ModelError(message) from error


def _shapes(config: Config, weights: Mapping[str, Tensor], path: Path) -> tuple[Config, Config]:
    """The library's configurations of U-Net and VAE."""
    ldm = {"model": {"params": config}}
    try:
        unet = create_unet_diffusers_config_from_ldm(ldm, weights, image_size=None)
        unet["in_channels"] = weights["model.diffusion_model.input_blocks.0.0.weight"].shape[1]  # 9 for an inpainting model
        if "conditioner.embedders.1.model.ln_final.weight" in weights:  # the library goes by the width of the text
            unet |= {"class_embed_type": None, "addition_embed_type": "text_time"}
            unet["addition_time_embed_dim"] = SIZE_EMBEDDING
        return unet, create_vae_diffusers_config_from_ldm(ldm, weights)
    except (KeyError, TypeError, AttributeError, ValueError, OSError) as error:
        found = f"{type(error).__name__}: {error}"
        message = (
            f"The configuration {path.with_suffix('.yaml')} does not describe a Stable Diffusion ({found}): expected what "
            "the original code has, such as v1-inference.yaml, or no such file for a checkpoint of the usual shape."
        )
        raise ModelError(message) from error


def _text_encoders(family: str, config: Config, weights: dict[str, Tensor]) -> list[TextEncoder]:
    if family == "SDXL":
        folders = [each.get("params", {}).get("version") for each in _embedders(config)]
        first = single_file_text.clip(weights, "conditioner.embedders.0.transformer.", next(iter(folders), None))
        return both_encoders(first, single_file_text.open_clip(weights, "conditioner.embedders.1.model."))
    if family == "SD 2.x":
        encoder = single_file_text.open_clip_penultimate(weights, "cond_stage_model.model.")
    else:
        version = (config.get("cond_stage_config", {}).get("params") or {}).get("version")
        encoder = single_file_text.clip(weights, "cond_stage_model.transformer.", version)
    return [single_file_text.alone(*encoder)]


def _embedders(config: Config) -> list[Config]:
    return config.get("conditioner_config", {}).get("params", {}).get("emb_models", [])


def _says_v(config: Config, weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bool | None:
    """Whether it predicts v, by its configuration, a marker tensor, or its metadata; None if they do not say."""
    scaling = config.get("denoiser_config", {}).get("params", {}).get("scaling_config", {}).get("target", "")
    if "parameterization" in config or scaling:
        return config.get("parameterization") == "v" or scaling.endswith("VScaling")
    if "v_pred" in weights:
        return True
    stated = metadata.get("modelspec.prediction_type") or metadata.get("modelspec.predict_key")
    return SAYS_V.get(stated or "")
