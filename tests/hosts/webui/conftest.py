"""A Stable Diffusion of real modules with random weights, a few channels wide, and our model over it."""

from __future__ import annotations

import copy
import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ti_trainer import tiny_model


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
    for file in (tiny_model.MODEL / "tokenizer").iterdir():
        shutil.copy(file, folder)
    torch.manual_seed(1)
    config = CLIPTextConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4)
    network = CLIPTextModel(config)
    torch.nn.init.normal_(network.text_model.final_layer_norm.bias)  # emphasis divides by a mean, which else is next to 0
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def made(ldm: Any, clip_folder: Path) -> Callable[[str], Any]:
    """Each family's network, made once: tests get copies, since to make one takes most of a second."""
    from networks import make

    return functools.cache(lambda family: make(family, clip_folder))


@pytest.fixture
def sd_model(request: pytest.FixtureRequest, made: Callable[[str], Any]) -> Any:
    """As the WebUI has it after loading; SD 1.x unless a test is parametrized with other families."""
    family = getattr(request, "param", "SD 1.x")
    if family.startswith("sgm"):
        pytest.importorskip("sgm.models.diffusion", reason="sgm is not installed: put its checkout into PYTHONPATH")
    network = made(family)
    tokenizers = [module.tokenizer for module in network.modules() if hasattr(module, "tokenizer")]
    network = copy.deepcopy(network, {id(each): each for each in tokenizers})  # those would take as long as the rest
    network.family = family
    return network


@pytest.fixture
def webui_model(sd_model: Any) -> Callable[..., Any]:
    """Makes our model over it; options are those of Surroundings."""
    from ti_trainer.hosts.webui.model import RuntimeSettings, WebuiModel
    from ti_trainer.hosts.webui.model_spec import spec_of, text_stages
    from ti_trainer.hosts.webui.text import prompt_encoders

    def make(clip_skip: int = 1, *, clip_l_skip: bool = False, options: Any = None, **around: Any) -> WebuiModel:
        emphasize = text_stages(sd_model)[0].emphasize
        texts = prompt_encoders(sd_model, torch.device("cpu"), emphasize, clip_skip, clip_l_skip=clip_l_skip)
        return WebuiModel(sd_model, spec_of(sd_model, options), texts, RuntimeSettings(**around))

    return make


@pytest.fixture
def words(sd_model: Any) -> dict[str, dict[str, torch.Tensor]]:
    """Two vectors of `zz-cat` for each of the model's text encoders."""
    from networks import WIDTHS

    generator = torch.Generator().manual_seed(3)
    widths = WIDTHS[sd_model.family]
    vectors = {encoder: torch.randn(2, width, generator=generator) * 0.02 for encoder, width in widths.items()}
    return {"zz-cat": {encoder: each.requires_grad_() for encoder, each in vectors.items()}}


def _let_torchvision_load() -> None:
    """Built for another torch than the one that is here, it misses two operators, which nothing here calls."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
