"""A Stable Diffusion of real `ldm` modules with random weights, a few channels wide, and our model over it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ti_trainer import embedded

WIDTH = 32
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
    "context_dim": WIDTH,
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


@pytest.fixture(scope="session")
def ldm() -> Any:
    """The original code's package, which the WebUI brings along."""
    pytest.importorskip("ldm", reason="the package ldm is not installed: pip install --no-deps stable-diffusion-sdkit")
    _let_torchvision_load()
    pytest.importorskip("pytorch_lightning", reason="ldm needs pytorch_lightning==1.9.4")
    import ldm.models.diffusion.ddpm

    return ldm


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory, ldm: Any) -> Path:
    """A CLIP of three layers with the embedded model's tokenizer."""
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = tmp_path_factory.mktemp("clip")
    for file in (embedded.MODEL / "tokenizer").iterdir():
        shutil.copy(file, folder)
    torch.manual_seed(1)
    config = CLIPTextConfig(hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4)
    network = CLIPTextModel(config)
    torch.nn.init.normal_(network.text_model.final_layer_norm.bias)  # emphasis divides by a mean, which else is next to 0
    network.save_pretrained(folder)
    return folder


@pytest.fixture
def sd_model(ldm: Any, clip_folder: Path) -> Any:
    """As the WebUI has it after loading: a LatentDiffusion whose text encoder is wrapped."""
    from stand_in import CondStage

    torch.manual_seed(2)
    network = ldm.models.diffusion.ddpm.LatentDiffusion(
        first_stage_config={
            "target": "ldm.models.autoencoder.AutoencoderKL",
            "params": {"embed_dim": 4, "ddconfig": VAE, "lossconfig": {"target": "torch.nn.Identity"}},
        },
        cond_stage_config={
            "target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder",
            "params": {"version": str(clip_folder)},
        },
        unet_config={"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": dict(UNET)},
        timesteps=1000,
        linear_start=0.00085,
        linear_end=0.012,
        cond_stage_key="txt",
        image_size=8,
        channels=4,
        conditioning_key="crossattn",
        scale_factor=0.18215,
        use_ema=False,
    )
    for each in network.model.parameters():
        if not each.any():  # the original code begins with zeros, through which nothing would show
            torch.nn.init.normal_(each, std=0.1)
    network.cond_stage_model = CondStage(network.cond_stage_model)
    network.sd_checkpoint_info = SimpleNamespace(
        model_name="tiny", shorthash=None, calculate_shorthash=lambda: "0123456789", title="tiny.safetensors"
    )
    return network.eval()


@pytest.fixture
def webui_model(sd_model: Any) -> Callable[..., Any]:
    """Makes our model over it; options are those of Surroundings."""
    from ti_trainer.hosts.webui.model import Surroundings, WebuiModel
    from ti_trainer.hosts.webui.text import PromptEncoder

    def make(clip_skip: int = 1, **around: Any) -> WebuiModel:
        stage = sd_model.cond_stage_model
        text = PromptEncoder(stage, torch.device("cpu"), stage.emphasize, clip_skip)
        return WebuiModel(sd_model, text, Surroundings(**around))

    return make


@pytest.fixture
def words() -> dict[str, dict[str, torch.Tensor]]:
    """Two vectors of `zz-cat`."""
    vectors = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(3)) * 0.02
    return {"zz-cat": {"clip_l": vectors.requires_grad_()}}


def _let_torchvision_load() -> None:
    """Built for another torch than the one that is here, it misses two operators, which nothing here calls."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
