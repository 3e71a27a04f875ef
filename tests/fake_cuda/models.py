"""Models on the pretended device: tiny ones of each family, and those of the published shapes."""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path

import families
import torch
from device import filled

from ti_trainer import tiny_model
from ti_trainer.data.dataset import Dataset, Item
from ti_trainer.data.prompts import Prompter
from ti_trainer.data.subsets import Subset
from ti_trainer.embedding import Embedding
from ti_trainer.host import ModelOptions
from ti_trainer.hosts.diffusers import loading, shapes
from ti_trainer.hosts.diffusers.components import Components, both_encoders
from ti_trainer.hosts.diffusers.library import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from ti_trainer.hosts.diffusers.model import DiffusersModel
from ti_trainer.hosts.diffusers.text import TextEncoder

NAME = "x-word"


@cache
def tokenizer(pad_token: str = "") -> CLIPTokenizer:
    return families.tokenizer(**({"pad_token": pad_token} if pad_token else {}))


def components(family: str, dtype: torch.dtype) -> Components:
    """As they are read: the U-Net in the model's dtype, all else in float32, on the CPU. In fake mode only."""
    kind, _, variant = family.partition("-")
    channels = 9 if variant == "inpainting" else 4
    scheduler = families.scheduler(variant == "v", rescaled=False)
    with torch.device("meta"):
        vae = families.vae(kind)
        if kind == "sdxl":
            unet = families.sdxl_unet(channels)
            clips = (
                (families.clip(families.CLIP_L, "quick_gelu"), tokenizer()),
                (families.clip(families.CLIP_G, "gelu", CLIPTextModelWithProjection), tokenizer("!")),
            )
            texts = both_encoders(*clips)
        else:
            unet = families.unet(channels, families.CLIP_L if kind == "sd1" else families.CLIP_H, of_sd2=kind == "sd2")
            first = families.clip(*(families.CLIP_L, "quick_gelu") if kind == "sd1" else (families.CLIP_H, "gelu"))
            name, pad = ("clip_l", "") if kind == "sd1" else ("clip_h", "!")
            texts = [TextEncoder(name, first, tokenizer(pad))]
    return _read(Components(unet.to(dtype), vae, texts, scheduler))


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


def embeddings_for(model: DiffusersModel, vectors: int = 2, *names: str) -> list[Embedding]:
    """Embeddings on the CPU."""
    shapes_of = {encoder: torch.zeros(vectors, width) for encoder, width in model.widths.items()}
    return [Embedding(name, shapes_of) for name in names or (NAME,)]


def dataset_for(model: DiffusersModel, size_px: int = 64, *, negative: str = "", **changes: object) -> Dataset:
    """Two images, encoded by the model; captions differ, so that each prompt is new."""
    pixels = torch.zeros(1, 3, size_px, size_px)
    latents, std = (each[0] for each in model.encode_images(pixels))
    masked = model.encode_masked(pixels, None)
    item = Item(
        path=Path("image.png"),
        caption="red, round, small, (old:1.2)",
        latents=latents,
        std=std,
        weight=torch.ones_like(latents[:1]),
        sizes=(size_px, size_px, 0, 0, size_px, size_px),
        masked=None if masked is None else masked[0],
        subset=Subset(Path()),
        **changes,  # type: ignore[arg-type]
    )
    prompter = Prompter(NAME, ("a photo of [name], [filewords]",), shuffle_tags=True, negative=negative)
    return Dataset((item, item), (), prompter, 0, len(model.alphas_cumprod))


def counted(iterator: object, count: int) -> list[object]:
    return list(itertools.islice(iterator, count))  # type: ignore[call-overload]
