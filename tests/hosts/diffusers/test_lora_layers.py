"""A LoRA in diffusers' modules: the numbers of merged weights, by the names of both schemes, and nothing left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import families
import ldm_export
import numpy as np
import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from loras import left_behind, merged, merged_change, pair, save_kohya
from torch import Tensor

from ti_trainer.errors import ConfigError
from ti_trainer.formats.lora import read_lora
from ti_trainer.hosts.diffusers.model import DiffusersModel
from ti_trainer.hosts.lora_names import original_names
from ti_trainer.lora import Lora, LoraLayer
from ti_trainer.model import ImageConditioning
from ti_trainer.offload.plan import MemoryPlan

ENDS = ("to_q", "attn2.to_k", "to_v", "to_out.0", "ff.net.0.proj", "proj_in", "conv1", "conv2", "conv_shortcut")
OTHERS = ("time_emb_proj", "samplers.0.conv", "conv_out", "time_embedding.linear_1", "fc1", "fc2", "q_proj", "out_proj")
WEIGHT = 0.7


@pytest.fixture(params=["sd1", "sd2", "sdxl"])
def model(request: pytest.FixtureRequest) -> DiffusersModel:
    return families.opened(request.param)


def adapted(model: DiffusersModel) -> dict[tuple[str, str], Any]:
    """The modules that the LoRAs here change, by prefix and name."""
    encoders = ("lora_te_",) if len(model.text_encoders) == 1 else ("lora_te1_", "lora_te2_")
    networks = {"lora_unet_": model.unet, **{p: e.module for p, e in zip(encoders, model.text_encoders, strict=True)}}
    return {
        (prefix, name if prefix == "lora_unet_" else f"text_model.{name.removeprefix('text_model.')}"): module
        for prefix, network in networks.items()
        for name, module in network.named_modules()
        if name.endswith((*ENDS, *OTHERS))
    }


def file_of(path: Path, model: DiffusersModel, names: dict[str, str] | None = None) -> tuple[Lora, dict[Any, Tensor]]:
    """A LoRA of all these modules, perhaps under other names, and the changes that it makes."""
    layers, changes = {}, {}
    for number, ((prefix, name), module) in enumerate(adapted(model).items()):
        each = pair(tuple(module.weight.shape), number)
        changes[module.weight] = merged_change(*each)
        layers[prefix + (names or {}).get(name, name).replace(".", "_")] = each
    return read_lora(save_kohya(path, layers)), changes


@torch.no_grad()
def predicted(model: DiffusersModel) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    cond = model.encode_prompts(["a (red:1.2) star", "a cat, " * 30], {})
    sizes = torch.tensor([[64, 64, 0, 0, 64, 64]]).float().repeat(2, 1)
    return model.predict(latents, torch.tensor([10, 700]), cond, ImageConditioning(sizes))


def test_predictions_are_those_of_merged_weights(tmp_path: Path, model: DiffusersModel) -> None:
    lora, changes = file_of(tmp_path / "a.safetensors", model)
    plain = predicted(model)
    before = left_behind(*model.modules)
    assert model.fit_lora(lora) == ""
    with model.training(), model.with_lora(lora, WEIGHT):
        ours = predicted(model)
    with merged(changes, WEIGHT):
        wanted = predicted(model)
    assert (wanted - plain).abs().mean() > 0.01
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))
    assert left_behind(*model.modules) == before
    assert torch.equal(predicted(model), plain)


def original(model: DiffusersModel) -> dict[str, str]:
    """The original code's name of each module of the U-Net, by diffusers' own conversion of checkpoints."""
    weights = ldm_export.unet(model.unet)
    numbered = {f"model.diffusion_model.{name}": torch.full_like(w, n) for n, (name, w) in enumerate(weights.items())}
    converted = convert_ldm_unet_checkpoint(numbered, dict(model.unet.config))
    names = list(weights)
    return {
        theirs.rpartition(".")[0]: names[int(numbers.flatten()[0])].rpartition(".")[0]
        for theirs, numbers in converted.items()
    }


def test_names_of_the_original_code_are_found(tmp_path: Path, model: DiffusersModel) -> None:
    names = original(model)
    for name, theirs in names.items():
        mine = list(original_names(name.replace(".", "_"), model.unet.config.layers_per_block))
        assert theirs.replace(".", "_") in mine, name
    here, there = file_of(tmp_path / "a.safetensors", model)[0], file_of(tmp_path / "b.safetensors", model, names)[0]
    assert any(name.startswith("output_blocks_1_") for _, name in there.layers)
    found = []
    for lora in (here, there):
        with model.with_lora(lora, WEIGHT):
            found.append(predicted(model))
    assert torch.equal(*found)


@pytest.mark.parametrize(
    "plan",
    [MemoryPlan(checkpointing=1), MemoryPlan(checkpointing=1, offload="all"), MemoryPlan(checkpointing=1, eight_bit=True)],
)
def test_it_works_with_every_memory_plan(tmp_path: Path, plan: MemoryPlan) -> None:
    model = families.opened("sd1")
    lora, changes = file_of(tmp_path / "a.safetensors", model)
    with merged(changes, WEIGHT):
        wanted = predicted(model)
    try:
        model.memory.use(plan)
        plain = predicted(model)
        before = left_behind(*model.modules)
        with model.training(), model.with_lora(lora, WEIGHT):
            ours = predicted(model)
        assert left_behind(*model.modules) == before
    finally:
        model.use_all_memory()
    assert (plain - wanted).abs().mean() > 0.01
    assert (ours - wanted).abs().max() < (0.2 if plan.eight_bit else 1e-4)


def test_nothing_is_left_after_an_error_and_compiled_code_is_not_used_meanwhile(tmp_path: Path) -> None:
    model = families.opened("sd1")
    lora, _ = file_of(tmp_path / "a.safetensors", model)
    before, plain, compiled = left_behind(*model.modules), predicted(model), object()
    model.memory.compiled = compiled
    try:
        with model.with_lora(lora, 1):
            assert model.memory.unet is model.unet
            assert not torch.is_grad_enabled()
        with pytest.raises(RuntimeError, match="out of memory"), model.with_lora(lora, 1):
            raise RuntimeError("out of memory")
        assert model.memory.compiled is compiled
    finally:
        model.memory.compiled = None
    assert left_behind(*model.modules) == before
    assert torch.is_grad_enabled()
    assert torch.equal(predicted(model), plain)


def layer(inputs: int, outputs: int) -> LoraLayer:
    return LoraLayer(np.ones((2, inputs), np.float32), np.ones((outputs, 2), np.float32), 1.0)


def test_layers_that_are_not_in_the_model_are_counted() -> None:
    model, (good, bad) = families.opened("sd1"), (("unet", "mid_block_attentions_0_proj_in"), ("unet", "nowhere"))
    width = model.unet.mid_block.attentions[0].proj_in.in_channels
    message = model.fit_lora(Lora("mine", {good: layer(width, width), bad: layer(4, 4)}, ("hat",)))
    assert "1 of the 2 layers of the LoRA mine, such as nowhere" in message
    assert "(hat)" in message
    for layers, expected in (
        ({bad: layer(4, 4), ("text_encoder_2", "text_model_encoder_layers_0_mlp_fc1"): layer(64, 256)}, "none of the 2"),
        ({good: layer(width + 1, width)}, "expected 64 x 64 x 1 x 1"),
    ):
        with pytest.raises(ConfigError, match=expected) as caught:
            model.fit_lora(Lora("mine", layers))
        assert caught.value.option == "teacher_lora"
