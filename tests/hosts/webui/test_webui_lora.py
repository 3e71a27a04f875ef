"""A LoRA in the WebUI's modules, OpenCLIP's attention among them: the numbers of merged weights, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from loras import left_behind, merged, merged_change, pair, save_kohya
from test_webui_model import inputs, state, told
from torch import Tensor, nn

from ti_trainer.formats.lora import read_lora
from ti_trainer.hosts.lora_names import original_names
from ti_trainer.offload.plan import MemoryPlan

NAMES = {  # diffusers' names, with residual blocks of one a level
    "conv_in",
    "time_embedding_linear_1",
    "down_blocks_0_resnets_0_conv1",
    "down_blocks_0_resnets_0_time_emb_proj",
    "down_blocks_0_downsamplers_0_conv",
    "down_blocks_1_resnets_0_conv_shortcut",
    "down_blocks_1_attentions_0_proj_in",
    "down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
    "down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k",
    "mid_block_resnets_1_conv2",
    "mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0",
    "up_blocks_0_attentions_1_transformer_blocks_0_ff_net_0_proj",
    "up_blocks_0_upsamplers_0_conv",
    "up_blocks_1_attentions_1_proj_out",
    "conv_out",
}
PARTS = ("self_attn_q_proj", "self_attn_k_proj", "self_attn_v_proj", "self_attn_out_proj", "mlp_fc1", "mlp_fc2")
OPEN_CLIP = {"self_attn_out_proj": "attn.out_proj", "mlp_fc1": "mlp.c_fc", "mlp_fc2": "mlp.c_proj"}
WEIGHT = 0.7
every_kind = pytest.mark.parametrize("sd_model", ["SD 1.x", "SD 2.x", "SDXL"], indirect=True)


def in_unet(unet: nn.Module, name: str) -> nn.Module:
    modules = {each.replace(".", "_"): module for each, module in unet.named_modules()}
    return next(modules[each] for each in original_names(name, 1) if each in modules)


def in_text(stage: Any, number: int, part: str) -> tuple[nn.Parameter, slice]:
    """The weight, and those of its rows that a layer changes."""
    everything = slice(None)
    if hasattr(stage.wrapped, "transformer"):
        module = stage.wrapped.transformer.text_model.encoder.layers[number]
        for each in part.replace("self_attn_", "self_attn.").replace("mlp_", "mlp.").split("."):
            module = getattr(module, each)
        return module.weight, everything
    block = stage.wrapped.model.transformer.resblocks[number]
    if part in OPEN_CLIP:
        return block.get_submodule(OPEN_CLIP[part]).weight, everything
    place, width = PARTS.index(part), block.attn.embed_dim
    return block.attn.in_proj_weight, slice(place * width, (place + 1) * width)


def made(path: Path, model: Any, *, original: bool = False) -> tuple[Any, dict[Any, Tensor]]:
    """A LoRA with layers of all kinds, and the changes that it makes."""
    unet, layers, changes = model.memory.networks.unet, {}, {}
    of = {id(module): name for name, module in unet.named_modules()}
    for number, name in enumerate(sorted(NAMES)):
        module = in_unet(unet, name)
        each = pair(tuple(module.weight.shape), number)
        changes[module.weight] = merged_change(*each)
        layers["lora_unet_" + (of[id(module)].replace(".", "_") if original else name)] = each
    for text, prefix in zip(model.texts, ("te1", "te2") if len(model.texts) > 1 else ("te",), strict=True):
        for place, part in enumerate(PARTS):
            weight, rows = in_text(text.stage, 1, part)
            each = pair(tuple(weight[rows].shape), 100 + place)
            changes.setdefault(weight, torch.zeros_like(weight))[rows] += merged_change(*each)
            layers[f"lora_{prefix}_text_model_encoder_layers_1_{part}"] = each
    return read_lora(save_kohya(path, layers)), changes


@torch.no_grad()
def predicted(model: Any) -> Tensor:
    latents, timesteps, _ = inputs(1)
    cond = model.encode_prompts(["a (red:1.2) cat", "a photo, " * 30], {})
    return model.predict(latents, timesteps, cond, told())


@every_kind
@pytest.mark.parametrize("original", [False, True])
def test_predictions_are_those_of_merged_weights(
    webui_model: Callable[..., Any], sd_model: Any, tmp_path: Path, original: bool
) -> None:
    model = webui_model()
    lora, changes = made(tmp_path / "a.safetensors", model, original=original)
    before, plain = (state(sd_model), left_behind(sd_model)), predicted(model)
    assert model.fit_lora(lora) == ""
    with model.training(), model.with_lora(lora, WEIGHT):
        ours = predicted(model)
        with model.restored():
            assert torch.equal(predicted(model), ours), "also while the WebUI has its network back"
    with merged(changes, WEIGHT):
        wanted = predicted(model)
    assert (wanted - plain).abs().mean() > 0.01
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))
    assert (state(sd_model), left_behind(sd_model)) == before
    assert torch.equal(predicted(model), plain)


@pytest.mark.parametrize("sd_model", ["SD 2.x"], indirect=True)
def test_weights_may_be_offloaded(webui_model: Callable[..., Any], sd_model: Any, tmp_path: Path) -> None:
    model = webui_model()
    lora, changes = made(tmp_path / "a.safetensors", model)
    with merged(changes, WEIGHT):
        wanted = predicted(model)
    before = state(sd_model), left_behind(sd_model)
    model.memory.plan = MemoryPlan(checkpointing=1, offload="all")
    with model.training():
        with model.with_lora(lora, WEIGHT):
            assert (predicted(model) - wanted).abs().max() < 1e-4
        with pytest.raises(RuntimeError, match="no memory"), model.with_lora(lora, WEIGHT):
            raise RuntimeError("no memory")
    assert (state(sd_model), left_behind(sd_model)) == before
