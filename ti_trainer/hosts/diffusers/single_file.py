"""Single-file SD 1.x checkpoints (.safetensors, .ckpt) in the layout of the original code and the WebUI.

As in the WebUI, a configuration `<checkpoint>.yaml` beside the file tells its shape; without one it is SD 1.5's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    create_unet_diffusers_config_from_ldm,
    create_vae_diffusers_config_from_ldm,
)
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ti_trainer import embedded, formats
from ti_trainer.errors import ModelError

Parts = tuple[UNet2DConditionModel, AutoencoderKL, CLIPTextModel, CLIPTokenizer, DDPMScheduler]

SD15: dict[str, Any] = {
    "linear_start": 0.00085,
    "linear_end": 0.012,
    "timesteps": 1000,
    "scale_factor": 0.18215,
    "unet_config": {
        "params": {
            "in_channels": 4,
            "out_channels": 4,
            "model_channels": 320,
            "attention_resolutions": [4, 2, 1],
            "num_res_blocks": 2,
            "channel_mult": [1, 2, 4, 4],
            "num_heads": 8,
            "transformer_depth": 1,
            "context_dim": 768,
        }
    },
    "first_stage_config": {
        "params": {
            "ddconfig": {
                "z_channels": 4,
                "in_channels": 3,
                "out_ch": 3,
                "ch": 128,
                "ch_mult": [1, 2, 4, 4],
                "num_res_blocks": 2,
            }
        }
    },
    "cond_stage_config": {},
}
CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
FOREIGN = {  # a key that only other kinds of model have -> what they are
    "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight": "an SDXL checkpoint",
    "cond_stage_model.model.token_embedding.weight": "an SD 2.x checkpoint",
    "emb_params": "an embedding",
}


def read(path: Path) -> Parts:
    """The parts of a checkpoint in float32; ModelError if the file is damaged, unsafe, or not SD 1.x."""
    weights = _state_dict(path)
    _refuse_other_kinds(weights, path)
    config = _config(path)
    unet_config, vae_config, clip_config = _shapes(config, weights, path)
    try:
        with torch.device("meta"):  # random numbers for a whole U-Net take longer than reading the file
            unet, vae = UNet2DConditionModel.from_config(unet_config), AutoencoderKL.from_config(vae_config)
        unet = _filled(unet, convert_ldm_unet_checkpoint(weights, unet_config))
        vae = _filled(vae, convert_ldm_vae_checkpoint(weights, vae_config))
        text_encoder = _text_encoder(clip_config, convert_ldm_clip_checkpoint(weights))
    except (KeyError, RuntimeError, IndexError) as error:
        message = (
            f"{path} is not a whole SD 1.x checkpoint: {' '.join(str(error).split())[:200]} ... If its shape is unusual, "
            f"put its configuration beside it as {path.with_suffix('.yaml').name}."
        )
        raise ModelError(message) from error
    scheduler = DDPMScheduler(
        num_train_timesteps=config["timesteps"],
        beta_start=config["linear_start"],
        beta_end=config["linear_end"],
        beta_schedule="scaled_linear",
        prediction_type="v_prediction" if config.get("parameterization") == "v" else "epsilon",
    )
    return unet, vae, text_encoder, CLIPTokenizer.from_pretrained(embedded.MODEL / "tokenizer"), scheduler


def _state_dict(path: Path) -> dict[str, Tensor]:
    if path.suffix.lower() == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            message = f"The checkpoint {path} cannot be read ({error}): it is damaged or not a .safetensors file."
            raise ModelError(message) from error
    return formats.read_checkpoint(path)


def _refuse_other_kinds(weights: dict[str, Tensor], path: Path) -> None:
    found = next((kind for key, kind in FOREIGN.items() if key in weights), None)
    if found is None and any(key.startswith("lora_") for key in weights):
        found = "a LoRA"
    if found is None and not any(key.startswith("model.diffusion_model.") for key in weights):
        found = "not a Stable Diffusion checkpoint"
    if found:
        message = f"{path} is {found}; expected a whole SD 1.x checkpoint."
        raise ModelError(message)


def _config(path: Path) -> dict[str, Any]:
    beside = path.with_suffix(".yaml")
    if not beside.is_file():
        return SD15
    try:
        return {**SD15, **yaml.safe_load(beside.read_text(encoding="utf-8"))["model"]["params"]}
    except (UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        message = (
            f"The configuration {beside} cannot be read ({error}): expected model: params: ... as the original code has it."
        )
        raise ModelError(message) from error


def _shapes(
    config: dict[str, Any], weights: dict[str, Tensor], path: Path
) -> tuple[dict[str, Any], dict[str, Any], CLIPTextConfig]:
    """The libraries' configurations; the text encoder is CLIP-L, or what the folder that is named as its version says."""
    ldm = {"model": {"params": config}}
    try:
        unet = create_unet_diffusers_config_from_ldm(ldm, weights, image_size=None)
        unet["sample_size"] = config.get("image_size", 64)
        first = weights.get("model.diffusion_model.input_blocks.0.0.weight")
        unet["in_channels"] = unet["in_channels"] if first is None else first.shape[1]  # 9 tell an inpainting model
        version = (config["cond_stage_config"].get("params") or {}).get("version", "")
        clip = CLIPTextConfig.from_pretrained(version) if version and Path(version).is_dir() else CLIPTextConfig(**CLIP_L)
        return unet, create_vae_diffusers_config_from_ldm(ldm, weights), clip
    except (KeyError, TypeError, AttributeError, ValueError, OSError) as error:
        found = f"{type(error).__name__}: {error}"
        message = (
            f"The configuration {path.with_suffix('.yaml')} does not describe a Stable Diffusion ({found}): expected what "
            "the original code has, such as v1-inference.yaml, or no such file for SD 1.5."
        )
        raise ModelError(message) from error


def _text_encoder(clip: CLIPTextConfig, weights: dict[str, Tensor]) -> CLIPTextModel:
    model = CLIPTextModel(clip)
    names = model.state_dict().keys()
    bare = {name.removeprefix("text_model."): name for name in names}  # newer libraries leave the prefix out
    known = {
        bare[key]: value for key, value in ((k.removeprefix("text_model."), v) for k, v in weights.items()) if key in bare
    }
    return _filled(model, known)


def _filled(module: nn.Module, weights: dict[str, Tensor]) -> Any:
    module.load_state_dict({key: value.to(torch.float32) for key, value in weights.items()}, assign=True)
    return module.float()
