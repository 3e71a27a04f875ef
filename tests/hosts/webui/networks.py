"""Stable Diffusions a few channels wide, with random weights, as the WebUI has them after loading: of real `ldm` modules.

SDXL's own code, `sgm`, is on no package index: where it cannot be imported, its parts that `ldm` lacks are stand-ins.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from stand_in import Conditioner, CondStage, Engine, FrozenOpenCLIPEmbedder2, SizeEmbedder
from torch import Tensor, nn

CLIP_L, CLIP_G, CLIP_H, SIZE = 32, 64, 64, 16  # widths
WIDTHS = {
    "SD 1.x": {"clip_l": CLIP_L},
    "SD 1.x inpainting": {"clip_l": CLIP_L},
    "SD 2.x": {"clip_l": CLIP_H},  # told by its width, which is not that of a real one
    "SDXL": {"clip_l": CLIP_L, "clip_g": CLIP_G},
    "SDXL inpainting": {"clip_l": CLIP_L, "clip_g": CLIP_G},
    "sgm SDXL": {"clip_l": CLIP_L, "clip_g": CLIP_G},
    "sgm SDXL inpainting": {"clip_l": CLIP_L, "clip_g": CLIP_G},
}
UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "attention_resolutions": [2, 1],
    "num_res_blocks": 1,
    "channel_mult": [1, 2],
    "num_heads": 4,
    "use_spatial_transformer": True,
    "transformer_depth": 1,
    "context_dim": CLIP_L,
    "use_checkpoint": True,
    "legacy": False,
}
VAE = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 64,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 1, 1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
}
ADM = CLIP_G + 6 * SIZE
SIZE_KEYS = ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")


def make(family: str, clip_folder: Path) -> Any:
    """A model of this family; always the same."""
    torch.manual_seed(2)
    channels = 9 if "inpainting" in family else 4
    if family.startswith("sgm"):
        network = _sgm(clip_folder, channels)
    elif family.startswith("SDXL"):
        network = _sdxl(clip_folder, channels)
    else:
        network = _latent_diffusion(family, clip_folder, channels)
    for name, each in network.named_parameters():
        if (not each.any() and "diffusion_model" in name) or name.endswith("ln_final.bias"):
            nn.init.normal_(each, std=0.1)  # the original code begins with zeros, through which nothing would show
    network.sd_checkpoint_info = SimpleNamespace(
        model_name="tiny",
        shorthash=None,
        calculate_shorthash=lambda: "0123456789",
        title="tiny.safetensors",
        filename="/nowhere/tiny.safetensors",
    )
    return network.eval()


def embed_as_host(network: Any, name: str, vectors: dict[str, Tensor]) -> None:
    """The host knows an embedding of these vectors, as it makes it of a file."""
    tensors = {encoder: each.detach() for encoder, each in vectors.items()}
    first = next(iter(tensors.values()))
    stage = network.cond_stage_model if len(tensors) == 1 else network.conditioner.embedders[0]
    stage.register(SimpleNamespace(name=name, vec=first if len(tensors) == 1 else tensors, vectors=len(first)))


@torch.no_grad()
def condition_as_host(network: Any, prompt: str, sizes: Tensor) -> dict[str, Tensor]:
    """Hidden states `crossattn` (1, T, width), and of SDXL `vector` (1, width), by the model's own code."""
    if not hasattr(network, "conditioner"):
        return {"crossattn": network.cond_stage_model([prompt])}
    told = {key: sizes[:, 2 * number : 2 * number + 2] for number, key in enumerate(SIZE_KEYS)}
    return network.conditioner({"txt": [prompt], **told})


@torch.no_grad()
def predict_as_host(network: Any, latents: Tensor, timesteps: Tensor, cond: dict[str, Tensor], masked: Tensor) -> Tensor:
    """By the model's own code, with `masked` (B, 5, H, W) for inpainting."""
    inpainting = network.model.diffusion_model.in_channels == 9
    if hasattr(network, "conditioner"):  # as modules/sd_models_xl.py
        return network.model(torch.cat([latents, masked], 1) if inpainting else latents, timesteps, cond)
    if inpainting:
        return network.apply_model(latents, timesteps, {"c_concat": [masked], "c_crossattn": [cond["crossattn"]]})
    return network.apply_model(latents, timesteps, cond["crossattn"])


def _latent_diffusion(family: str, clip_folder: Path, channels: int) -> Any:
    import ldm.models.diffusion.ddpm

    unet = {**UNET, "in_channels": channels}
    text = {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder", "params": {"version": str(clip_folder)}}
    if family == "SD 2.x":
        unet |= {"context_dim": CLIP_H, "use_linear_in_transformer": True, "num_heads": -1, "num_head_channels": 16}
        arch = _open_clip("tiny-h", clip_folder, CLIP_H)
        text = {
            "target": "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder",
            "params": {"arch": arch, "version": None, "layer": "penultimate"},
        }
    network = ldm.models.diffusion.ddpm.LatentDiffusion(
        first_stage_config={
            "target": "ldm.models.autoencoder.AutoencoderKL",
            "params": {"embed_dim": 4, "ddconfig": VAE, "lossconfig": {"target": "torch.nn.Identity"}},
        },
        cond_stage_config=text,
        unet_config={"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": unet},
        timesteps=1000,
        linear_start=0.00085,
        linear_end=0.012,
        cond_stage_key="txt",
        image_size=8,
        channels=4,
        conditioning_key="hybrid" if channels == 9 else "crossattn",
        scale_factor=0.18215,
        use_ema=False,
    )
    network.cond_stage_model = CondStage(network.cond_stage_model)
    return network


def _sdxl(clip_folder: Path, channels: int) -> Any:
    """Of `ldm`, with stand-ins for the rest."""
    from ldm.models.autoencoder import AutoencoderKL
    from ldm.modules.diffusionmodules.openaimodel import UNetModel
    from ldm.modules.encoders.modules import FrozenCLIPEmbedder

    class Unet(UNetModel):
        """Takes any vector besides, as `sgm`'s."""

        def __init__(self, adm_in_channels: int, **params: Any) -> None:
            super().__init__(**params, num_classes="continuous")
            width = self.model_channels * 4
            self.label_emb = nn.Sequential(nn.Linear(adm_in_channels, width), nn.SiLU(), nn.Linear(width, width))

    class SamplingVae(AutoencoderKL):
        """Draws at once."""

        def encode(self, x: Tensor) -> Tensor:
            return super().encode(x).sample()

    clip = FrozenCLIPEmbedder(version=str(clip_folder), layer="hidden", layer_idx=2)
    open_clip = FrozenOpenCLIPEmbedder2(_open_clip("tiny-g", clip_folder, CLIP_G))
    unet = Unet(ADM, **{**UNET, "in_channels": channels, "context_dim": CLIP_L + CLIP_G})
    vae = SamplingVae(VAE, {"target": "torch.nn.Identity"}, 4)
    conditioner = Conditioner([*_hijacked(clip, open_clip), *(SizeEmbedder(key, SIZE) for key in SIZE_KEYS)])
    return Engine(unet, vae, conditioner)


def _sgm(clip_folder: Path, channels: int) -> Any:
    """Of `sgm`, with its wrappers and attributes as the host's modules/sd_hijack.py and sd_models_xl.py make them."""
    from sgm.models.diffusion import DiffusionEngine

    own, scheme = "sgm.modules", "sgm.modules.diffusionmodules"
    text = {"version": str(clip_folder), "layer": "hidden", "layer_idx": 2}
    arch = _open_clip("tiny-g", clip_folder, CLIP_G)
    texts = [
        {"target": f"{own}.encoders.modules.FrozenCLIPEmbedder", "input_key": "txt", "params": text},
        {
            "target": f"{own}.encoders.modules.FrozenOpenCLIPEmbedder2",
            "input_key": "txt",
            "params": {
                "arch": arch, "version": None, "layer": "penultimate", "always_return_pooled": True, "legacy": False
            },
        },
    ]  # fmt: skip
    target = f"{own}.encoders.modules.ConcatTimestepEmbedderND"
    sizes = [{"target": target, "input_key": key, "params": {"outdim": SIZE}} for key in SIZE_KEYS]
    unet = {**UNET, "in_channels": channels, "context_dim": CLIP_L + CLIP_G, "num_classes": "sequential"}
    unet |= {"adm_in_channels": ADM, "spatial_transformer_attn_type": "softmax", "use_linear_in_transformer": True}
    del unet["image_size"]
    network = DiffusionEngine(
        network_config={"target": f"{scheme}.openaimodel.UNetModel", "params": unet},
        denoiser_config={
            "target": f"{scheme}.denoiser.DiscreteDenoiser",
            "params": {
                "num_idx": 1000,
                "weighting_config": {"target": f"{scheme}.denoiser_weighting.EpsWeighting"},
                "scaling_config": {"target": f"{scheme}.denoiser_scaling.EpsScaling"},
                "discretization_config": {"target": f"{scheme}.discretizer.LegacyDDPMDiscretization"},
            },
        },
        first_stage_config={
            "target": "sgm.models.autoencoder.AutoencoderKLInferenceWrapper",
            "params": {"embed_dim": 4, "ddconfig": VAE, "lossconfig": {"target": "torch.nn.Identity"}},
        },
        conditioner_config={"target": f"{own}.GeneralConditioner", "params": {"emb_models": texts + sizes}},
        scale_factor=0.13025,
        disable_first_stage_autocast=True,
    )
    embedders = network.conditioner.embedders
    embedders[0], embedders[1] = _hijacked(embedders[0], embedders[1])
    network.cond_stage_model = network.conditioner
    network.model.conditioning_key, network.parameterization = "crossattn", "eps"
    network.alphas_cumprod = torch.linspace(0.0292**0.5, 0.0345**0.5, 1000).square().flip(0)
    return network


def _hijacked(clip: Any, open_clip: Any) -> tuple[CondStage, CondStage]:
    first = CondStage(clip)
    return first, CondStage(open_clip, first.hijack, "clip_g")


def _open_clip(name: str, folder: Path, width: int) -> str:
    """The name of an OpenCLIP of three layers, which open_clip knows afterwards."""
    from open_clip import add_model_config

    file = folder / f"{name}.json"
    seen = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 32}
    read = {"context_length": 77, "vocab_size": 49408, "width": width, "heads": 2, "layers": 3}
    if not file.exists():
        file.write_text(json.dumps({"embed_dim": width, "vision_cfg": seen, "text_cfg": read}), encoding="utf-8")
        add_model_config(file)
    return name
