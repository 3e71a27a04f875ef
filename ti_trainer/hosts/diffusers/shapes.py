"""Models of the published shapes with random weights, for benchmarks: they cost what real ones do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ti_trainer import tiny_model
from ti_trainer.host import ModelOptions
from ti_trainer.hosts.diffusers.components import Components, both_encoders
from ti_trainer.hosts.diffusers.defaults import INDEX
from ti_trainer.hosts.diffusers.library import (
    AutoencoderKL,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    DDPMScheduler,
    UNet2DConditionModel,
)
from ti_trainer.hosts.diffusers.loading import assembled, be_quiet, pick_device, pick_dtype
from ti_trainer.hosts.diffusers.model import DiffusersModel
from ti_trainer.hosts.diffusers.text import TextEncoder

TOKENIZER = tiny_model.MODEL / "tokenizer"  # CLIP's own


@dataclass(frozen=True)
class Shape:
    """What differs between the families, besides the U-Net's arguments."""

    unet: Callable[[], UNet2DConditionModel]
    scaling_factor: float
    has_two_encoders: bool


def sd15_unet() -> UNet2DConditionModel:
    """Of 859,520,964 parameters."""
    return UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)


def sdxl_unet() -> UNet2DConditionModel:
    """Of 2,567,463,684 parameters (arXiv:2307.01952, table 1)."""
    return UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


SHAPES = {"sd15": Shape(sd15_unet, 0.18215, False), "sdxl": Shape(sdxl_unet, 0.13025, True)}


def random_model(shape: str, device: str = "auto", precision: str = "auto", seed: int = 0) -> DiffusersModel:
    """A model of one of SHAPES, prepared like a loaded one; the same for the same seed and device."""
    be_quiet()
    place = pick_device(device)
    dtype = pick_dtype(precision, place)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = _parts(SHAPES[shape], place, dtype, seed)
    return assembled(parts, place, dtype, f"{shape}-random", tiny_model.MODEL / INDEX, ModelOptions(precision))


def save(model: DiffusersModel, folder: Path, tokenizer: Path = TOKENIZER) -> None:
    """Write a model with one text encoder as a folder in diffusers' layout, for other programs to open.

    The tokenizer's files are copied, so that older libraries can read them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (encoder,) = model.text_encoders
    for name, module in (("unet", model.unet), ("vae", model.vae), ("text_encoder", encoder.module)):
        module.save_pretrained(folder / name)
    model.scheduler.save_pretrained(folder / "scheduler")
    shutil.copytree(tokenizer, folder / "tokenizer")
    index = json.loads((tiny_model.MODEL / INDEX).read_text(encoding="utf-8"))
    (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def _parts(shape: Shape, device: torch.device, dtype: torch.dtype, seed: int) -> Components:
    with torch.device("meta"):
        unet, coder = shape.unet().to(dtype), vae(shape.scaling_factor)
    for each in (unet, coder):
        _fill(each.to_empty(device="cpu"), torch.Generator(device).manual_seed(seed))
    scheduler = DDPMScheduler.from_pretrained(tiny_model.MODEL / "scheduler", local_files_only=True)
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER, local_files_only=True)
    first = CLIPTextModel(clip_config(768, 12, "quick_gelu", 49407))
    if not shape.has_two_encoders:
        return Components(unet, coder, [TextEncoder("clip_l", first, tokenizer)], scheduler)
    second = CLIPTextModelWithProjection(clip_config(1280, 32, "gelu", 0))
    other = CLIPTokenizer.from_pretrained(TOKENIZER, pad_token="!", local_files_only=True)  # noqa: S106 - as OpenCLIP has it
    return Components(unet, coder, both_encoders((first, tokenizer), (second, other)), scheduler)


def vae(scaling_factor: float) -> AutoencoderKL:
    """The VAE of SD 1.x and SDXL, which differ in their weights only."""
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        sample_size=512,
        scaling_factor=scaling_factor,
    )


def clip_config(width: int, layers: int, activation: str, pad_token_id: int) -> CLIPTextConfig:
    """A text encoder with heads of 64."""
    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        projection_dim=width,
        hidden_act=activation,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=pad_token_id,
    )


@torch.no_grad()
def _fill(module: nn.Module, generator: torch.Generator) -> None:
    """Fill with weights of torch's default scale, so that values neither overflow nor become denormal, which is slow.

    They are made on the generator's device, which is faster on a GPU, one at a time.
    """
    for name, each in module.named_parameters():
        if each.ndim > 1:
            values = torch.empty_like(each, device=generator.device)
            each.copy_(values.uniform_(-1, 1, generator=generator).mul_(each[0].numel() ** -0.5))
        else:
            each.fill_(0.0 if name.endswith("bias") else 1.0)
