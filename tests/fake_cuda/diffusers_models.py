"""Models of diffusers on the pretended device: tiny ones of each family, and those of the published shapes."""

from __future__ import annotations

from functools import cache

import families
import torch
from device import filled

from ti_trainer import tiny_model
from ti_trainer.host import ModelOptions
from ti_trainer.hosts.diffusers import loading, shapes
from ti_trainer.hosts.diffusers.components import Components, both_encoders
from ti_trainer.hosts.diffusers.library import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    UNet2DConditionModel,
)
from ti_trainer.hosts.diffusers.model import DiffusersModel
from ti_trainer.hosts.diffusers.text import TextEncoder


@cache
def tokenizer(pad_token: str = "") -> CLIPTokenizer:
    return families.tokenizer(**({"pad_token": pad_token} if pad_token else {}))


def tiny(family: str, dtype: torch.dtype) -> Components:
    """As they are read: the U-Net in the model's dtype, all else in float32, on the CPU. In fake mode only."""
    kind, _, variant = family.partition("-")
    is_xl, of_sd2 = kind == "sdxl", kind == "sd2"
    with torch.device("meta"):
        first = families.clip(families.CLIP_H if of_sd2 else families.CLIP_L, "gelu" if of_sd2 else "quick_gelu")
        texts = [TextEncoder("clip_h" if of_sd2 else "clip_l", first, tokenizer("!" if of_sd2 else ""))]
        if is_xl:
            second = families.clip(families.CLIP_G, "gelu", CLIPTextModelWithProjection)
            texts = both_encoders((first, tokenizer()), (second, tokenizer("!")))
        added = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": families.CLIP_G + 6 * 256,
        }
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=9 if variant == "inpainting" else 4,
            block_out_channels=(32,),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
            cross_attention_dim=sum(each.width for each in texts),
            attention_head_dim=4,
            use_linear_projection=of_sd2 or is_xl,
            **(added if is_xl else {}),
        )
        vae = families.vae(kind)
    return _read(Components(unet.to(dtype), vae, texts, families.scheduler(variant == "v", rescaled=False)))


def published(shape: str, dtype: torch.dtype) -> Components:
    """Those of one of `shapes.SHAPES`."""
    with torch.device("meta"):
        unet, vae = shapes.SHAPES[shape].unet(), shapes.vae(shapes.SHAPES[shape].scaling_factor)
        first = CLIPTextModel(shapes.clip_config(768, 12, "quick_gelu", 49407)), tokenizer()
        texts = [TextEncoder("clip_l", *first)]
        if shapes.SHAPES[shape].has_two_encoders:
            second = CLIPTextModelWithProjection(shapes.clip_config(1280, 32, "gelu", 0)), tokenizer("!")
            texts = both_encoders(first, second)
    return _read(Components(unet.to(dtype), vae, texts, families.scheduler(False, rescaled=False)))


def _read(parts: Components) -> Components:
    filled(parts.unet, parts.vae, *(each.module for each in parts.text_encoders))
    return parts


def model_of(parts: Components, precision: str) -> DiffusersModel:
    """The model, prepared as all are."""
    place = loading.pick_device("auto")
    dtype = loading.pick_dtype(precision, place)
    return loading.assembled(parts, place, dtype, "pretended", tiny_model.MODEL, ModelOptions(precision))
