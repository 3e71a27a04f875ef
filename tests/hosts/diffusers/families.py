"""A tiny random model of each family: the library's own pipelines at small width, to be saved, read, and compared with."""

from __future__ import annotations

import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ti_trainer import tiny_model
from ti_trainer.hosts.diffusers.library import (
    AutoencoderKL,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    DDPMScheduler,
    UNet2DConditionModel,
)
from ti_trainer.hosts.diffusers.loading import load
from ti_trainer.hosts.diffusers.model import DiffusersModel

CLIP_L, CLIP_G, CLIP_H = 64, 128, 128  # widths; heads of 64, as the great ones have
_FOLDER = tempfile.TemporaryDirectory()  # until the process ends
FAMILIES = ("sd1", "sd1-inpainting", "sd2", "sd2-v", "sd2-inpainting", "sdxl", "sdxl-v", "sdxl-inpainting")


def pipeline(family: str, seed: int = 0) -> Any:
    """The family's pipeline with random weights; the same for the same seed."""
    import diffusers  # here, since its pipelines take seconds to import

    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        kind, _, variant = family.partition("-")
        parts = {"vae": vae(kind), "scheduler": scheduler(variant == "v", rescaled=family == "sdxl-v")}
        channels = 9 if variant == "inpainting" else 4
        if kind == "sdxl":
            made = (
                diffusers.StableDiffusionXLInpaintPipeline
                if variant == "inpainting"
                else diffusers.StableDiffusionXLPipeline
            )
            return made(
                **parts,
                unet=sdxl_unet(channels),
                text_encoder=clip(CLIP_L, "quick_gelu"),
                text_encoder_2=clip(CLIP_G, "gelu", CLIPTextModelWithProjection),
                tokenizer=tokenizer(),
                tokenizer_2=tokenizer(pad_token="!"),  # noqa: S106 - as OpenCLIP has it
                add_watermarker=False,
            )
        made = diffusers.StableDiffusionInpaintPipeline if variant == "inpainting" else diffusers.StableDiffusionPipeline
        text, pad = (clip(CLIP_L, "quick_gelu"), {}) if kind == "sd1" else (clip(CLIP_H, "gelu"), {"pad_token": "!"})
        return made(
            **parts,
            unet=unet(channels, CLIP_L if kind == "sd1" else CLIP_H, of_sd2=kind == "sd2"),
            text_encoder=text,
            tokenizer=tokenizer(**pad),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


@cache
def shared(family: str) -> Any:
    """The same pipeline for all tests, which leave it as it is."""
    return pipeline(family)


def save(family: str, folder: Path) -> Path:
    """In diffusers' layout, in a folder that may be changed."""
    shutil.copytree(saved(family), folder)
    return folder


@cache
def saved(family: str) -> Path:
    """In diffusers' layout, in the same folder for all tests, which leave it as it is."""
    folder = Path(_FOLDER.name) / family
    shared(family).save_pretrained(folder)
    return folder


@cache
def opened(family: str) -> DiffusersModel:
    """Our model over `saved`, the same for all tests, which leave it as it is."""
    return load(str(saved(family)), "cpu")


def scheduler(is_v: bool, *, rescaled: bool) -> DDPMScheduler:
    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction" if is_v else "epsilon",
        rescale_betas_zero_snr=rescaled,
        steps_offset=1,
        clip_sample=False,
    )


def vae(kind: str) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(32, 32, 32, 64),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        sample_size=64,
        scaling_factor=0.13025 if kind == "sdxl" else 0.18215,
    )


def unet(in_channels: int, text_width: int, *, of_sd2: bool) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=text_width,
        attention_head_dim=(1, 2) if of_sd2 else 4,
        use_linear_projection=of_sd2,
    )


def sdxl_unet(in_channels: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        cross_attention_dim=CLIP_L + CLIP_G,
        attention_head_dim=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=CLIP_G + 6 * 256,
    )


def clip(width: int, activation: str, kind: type = CLIPTextModel) -> Any:
    """Three layers. As in the great ones' configurations, the end-of-text id is wrong."""
    module = kind(
        CLIPTextConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=3,
            num_attention_heads=width // 64,
            projection_dim=width,
            hidden_act=activation,
            bos_token_id=0,
            eos_token_id=2,
        )
    )
    last = next(each for name, each in module.named_modules() if name.endswith("final_layer_norm"))
    torch.nn.init.normal_(last.bias, 0.1, 0.1)  # the WebUI divides by the mean of what leaves it, which must not be 0
    return module


def tokenizer(**changed: str) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(tiny_model.MODEL / "tokenizer", **changed)
