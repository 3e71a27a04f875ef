"""Text encoders of single-file checkpoints: CLIP as transformers names its weights, and OpenCLIP.

Their shapes are taken from the weights. The vocabulary is the same for all, and part of this package. D width of a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
from torch import Tensor, nn

from ti_trainer import tiny_model
from ti_trainer.embedding import encoder_of_width
from ti_trainer.hosts.diffusers.library import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from ti_trainer.hosts.diffusers.text import TextEncoder

HEAD = 64  # channels of an attention head in all CLIP and OpenCLIP text encoders
ID_0 = "!"
VIT_H_USED = 23  # of its 24 layers, SD 2.x uses these; some files leave the last one out


def clip(weights: Mapping[str, Tensor], prefix: str, folder: str | None = None) -> tuple[CLIPTextModel, CLIPTokenizer]:
    """CLIP, with the weights' shape or the configuration in a folder; KeyError or RuntimeError if weights are missing."""
    found = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    known = {key.removeprefix("text_model."): value for key, value in found.items()}  # old files leave it out
    if folder and Path(folder).is_dir():
        config = CLIPTextConfig.from_pretrained(folder)
    else:
        table = known["embeddings.token_embedding.weight"]
        hidden = known["encoder.layers.0.mlp.fc1.weight"].shape[0]
        config = _config(table, hidden, _layers(known, "encoder.layers."), "quick_gelu")
    return _filled(CLIPTextModel, config, known), CLIPTokenizer.from_pretrained(tiny_model.MODEL / "tokenizer")


def open_clip(weights: dict[str, Tensor], prefix: str) -> tuple[CLIPTextModelWithProjection, CLIPTokenizer]:
    """OpenCLIP with its projection, as SDXL has it; KeyError or RuntimeError if weights are missing."""
    config = _open_clip_config(weights, prefix)
    config.projection_dim = weights[f"{prefix}text_projection"].shape[1]
    known = convert_open_clip_checkpoint(SimpleNamespace(config=config), weights, prefix)
    return _filled(CLIPTextModelWithProjection, config, known), _zero_padded()


def open_clip_penultimate(weights: dict[str, Tensor], prefix: str) -> tuple[CLIPTextModel, CLIPTokenizer]:
    """OpenCLIP without its last layer, as SD 2.x uses it; KeyError or RuntimeError if weights are missing."""
    config = _open_clip_config(weights, prefix)
    if config.num_hidden_layers != VIT_H_USED:
        config.num_hidden_layers -= 1
    known = convert_open_clip_checkpoint(SimpleNamespace(config=config), weights, prefix)
    return _filled(CLIPTextModel, config, known), _zero_padded()


def alone(module: CLIPTextModel, tokenizer: CLIPTokenizer) -> TextEncoder:
    """The TextEncoder of a model that has only one."""
    return TextEncoder(encoder_of_width(module.get_input_embeddings().embedding_dim), module, tokenizer)


def filled(module: nn.Module, weights: Mapping[str, Tensor]) -> Any:
    """A module from the meta device with these weights, not copied; RuntimeError if they do not fit."""
    module.load_state_dict(weights, assign=True)
    return module


def _config(table: Tensor, hidden: int, layers: int, activation: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=table.shape[0],
        hidden_size=table.shape[1],
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=table.shape[1] // HEAD,
        projection_dim=table.shape[1],
        hidden_act=activation,
    )


def _open_clip_config(weights: Mapping[str, Tensor], prefix: str) -> CLIPTextConfig:
    blocks = f"{prefix}transformer.resblocks."
    hidden = weights[f"{blocks}0.mlp.c_fc.weight"].shape[0]
    return _config(weights[f"{prefix}token_embedding.weight"], hidden, _layers(weights, blocks), "gelu")


def _layers(weights: Mapping[str, Tensor], prefix: str) -> int:
    return 1 + max(int(key.removeprefix(prefix).partition(".")[0]) for key in weights if key.startswith(prefix))


def _filled(kind: type[nn.Module], config: CLIPTextConfig, weights: Mapping[str, Tensor]) -> Any:
    with torch.device("meta"):  # initialising it takes longer than reading the file
        module = kind(config)
    names = {name.removeprefix("text_model."): name for name in module.state_dict()}  # newer libraries leave it out
    bare = {key.removeprefix("text_model."): value.to(torch.float32) for key, value in weights.items()}
    filled(module, {names[key]: value for key, value in bare.items() if key in names})
    for each in module.modules():
        if "position_ids" in dict(each.named_buffers(recurse=False)):  # not saved with the weights
            each.position_ids = torch.arange(config.max_position_embeddings)[None]
    return module


def _zero_padded() -> CLIPTokenizer:
    """OpenCLIP's tokenizer: it pads with id 0."""
    return CLIPTokenizer.from_pretrained(tiny_model.MODEL / "tokenizer", pad_token=ID_0)
