"""A diffusers model as a single-file checkpoint in the original code's layout, as every download for the WebUI is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from ti_trainer.hosts.diffusers.model import DiffusersModel

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
OPEN_CLIP_ENDS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
VAE = {
    "conv_shortcut": "nin_shortcut",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "conv_norm_out": "norm_out",
    "resnets": "block",
}


def checkpoint(model: DiffusersModel) -> dict[str, Tensor]:
    """All weights of the model under their names in the original code."""
    return {
        **{f"model.diffusion_model.{key}": value for key, value in unet(model.unet).items()},
        **{f"first_stage_model.{key}": value for key, value in vae(model.vae).items()},
        **text(model),
    }


def text(model: DiffusersModel) -> dict[str, Tensor]:
    """SD 1.x: CLIP. SD 2.x: OpenCLIP with a last layer that nobody uses. SDXL: both."""
    first, last = model.text_encoders[0].module, model.text_encoders[-1].module
    if first is not last:
        return {**clip(first, "conditioner.embedders.0."), **open_clip(last, "conditioner.embedders.1.model.")}
    if model.spec.family != "SD 2.x":
        return clip(first, "cond_stage_model.")
    weights, layers = open_clip(first, "cond_stage_model.model."), first.config.num_hidden_layers
    unused = {key.replace(".0.", f".{layers}."): value * 2 for key, value in weights.items() if "resblocks.0." in key}
    return weights | unused | {"cond_stage_model.model.text_projection": torch.eye(first.config.hidden_size)}


def clip(module: torch.nn.Module, prefix: str) -> dict[str, Tensor]:
    return {
        f"{prefix}transformer.text_model.{key.removeprefix('text_model.')}": value.clone()
        for key, value in module.state_dict().items()
    }


def open_clip(module: torch.nn.Module, prefix: str) -> dict[str, Tensor]:
    """Query, key and value lie in one matrix there; the projection is the other way round."""
    moved = {}
    weights = {key.removeprefix("text_model."): value for key, value in module.state_dict().items()}
    for key, value in weights.items():
        if key in OPEN_CLIP_ENDS:
            moved[OPEN_CLIP_ENDS[key]] = value.clone()
        elif key == "text_projection.weight":
            moved["text_projection"] = value.T.clone()
        elif ".q_proj." in key:
            parts = [weights[key.replace(".q_proj.", f".{each}_proj.")] for each in "qkv"]
            layer, kind = key.split(".")[2], key.rpartition(".")[2]
            moved[f"transformer.resblocks.{layer}.attn.in_proj_{kind}"] = torch.cat(parts)
        elif "_proj." not in key or ".out_proj." in key:
            new = key.replace("encoder.layers", "transformer.resblocks")
            for old, name in OPEN_CLIP.items():
                new = new.replace(old, name)
            moved[new] = value.clone()
    return {prefix + key: value for key, value in moved.items()}


def unet(network: UNet2DConditionModel) -> dict[str, Tensor]:
    per_level = network.config.layers_per_block + 1
    names = dict(UNET_ENDS)
    for level, kind in enumerate(network.config.down_block_types):
        for layer in range(per_level - 1):
            number = per_level * level + layer + 1
            names[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{number}.0"
            names[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{number}.1"
        names[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{per_level * (level + 1)}.0.op"
        up = network.config.up_block_types[level]
        for layer in range(per_level):
            number = per_level * level + layer
            names[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{number}.0"
            names[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{number}.1"
        place = 2 if "CrossAttn" in up else 1
        names[f"up_blocks.{level}.upsamplers.0"] = f"output_blocks.{per_level * (level + 1) - 1}.{place}"
        assert "Down" in kind
    moved = {}
    for key, value in network.state_dict().items():
        old = next(name for name in names if key.startswith(name + "."))
        rest = key.removeprefix(old)
        if "resnets" in old:
            first, _, last = rest[1:].partition(".")
            rest = f".{RESNET[first]}.{last}"
        moved[names[old] + rest] = value.clone()
    assert len(moved) == len(network.state_dict())
    return moved


def vae(network: AutoencoderKL) -> dict[str, Tensor]:
    last = len(network.config.block_out_channels) - 1
    moved = {}
    for key, value in network.state_dict().items():
        new = key.replace("encoder.down_blocks", "encoder.down")
        new = re.sub(r"decoder\.up_blocks\.(\d)", lambda found: f"decoder.up.{last - int(found[1])}", new)
        for old, name in VAE.items():
            new = new.replace(old, name)
        matrix = ".mid.attn_1." in new and value.ndim == 2
        moved[new] = value[..., None, None].clone() if matrix else value.clone()  # a convolution of 1 x 1 there
    assert len(moved) == len(network.state_dict())
    return moved


def configuration(model: DiffusersModel, text_encoder: Path) -> dict[str, Any]:
    """The .yaml beside the file: shapes as the original code names them."""
    network, coder = model.unet.config, model.vae.config
    base, coder_base = network.block_out_channels[0], coder.block_out_channels[0]
    params = {
        "linear_start": 0.00085,
        "linear_end": 0.012,
        "timesteps": 1000,
        "image_size": network.sample_size,
        "scale_factor": coder.scaling_factor,
        "unet_config": {
            "params": {
                "in_channels": network.in_channels,
                "out_channels": 4,
                "model_channels": base,
                "attention_resolutions": [2**i for i, kind in enumerate(network.down_block_types) if "CrossAttn" in kind],
                "num_res_blocks": network.layers_per_block,
                "channel_mult": [each // base for each in network.block_out_channels],
                "transformer_depth": network.transformer_layers_per_block,
                "context_dim": network.cross_attention_dim,
                **_heads(network),
                **_sizes(network),
            }
        },
        "first_stage_config": {
            "params": {
                "ddconfig": {
                    "z_channels": 4,
                    "in_channels": 3,
                    "out_ch": 3,
                    "ch": coder_base,
                    "ch_mult": [each // coder_base for each in coder.block_out_channels],
                    "num_res_blocks": coder.layers_per_block,
                }
            }
        },
        "cond_stage_config": {"params": {"version": str(text_encoder)}},
        **({"parameterization": "v"} if model.spec.prediction_type == "v_prediction" else {}),
    }
    return {"model": {"params": params}}


def _heads(network: Any) -> dict[str, Any]:
    """SD 1.x has the same number of heads everywhere, the others heads of the same width; here half as wide as there."""
    if not network.use_linear_projection:
        return {"num_heads": network.attention_head_dim}
    width = network.block_out_channels[0] // network.attention_head_dim[0]
    return {"num_head_channels": width, "use_linear_in_transformer": True}


def _sizes(network: Any) -> dict[str, Any]:
    if not network.addition_embed_type:
        return {}
    return {"num_classes": "sequential", "adm_in_channels": network.projection_class_embeddings_input_dim}


def describe(model: DiffusersModel, checkpoint_file: Path, text_encoder: Path, **changed: Any) -> None:
    """Write the .yaml beside a checkpoint."""
    config = configuration(model, text_encoder)
    config["model"]["params"] |= changed
    checkpoint_file.with_suffix(".yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
