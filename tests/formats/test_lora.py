"""LoRA files: those of kohya and diffusers are read, and what is none or could do harm is refused."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from loras import ALPHA, RANK, kohya, pair, save_kohya
from safetensors.torch import save_file

from ti_trainer.errors import ConfigError
from ti_trainer.files import short_hash
from ti_trainer.formats.lora import read_lora

QUERY = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
TEXT = "text_model_encoder_layers_0_mlp_fc1"
LINEAR = pair((6, 4), 0)
NAMES = {  # a tensor's name without .weight, by what it is: network and layer
    "lora_unet_" + QUERY + ".lora_{}": ("unet", QUERY),
    "lora_te_" + TEXT + ".lora_{}": ("text_encoder", TEXT),
    "lora_te1_" + TEXT + ".lora_{}": ("text_encoder", TEXT),
    "lora_te2_" + TEXT + ".lora_{}": ("text_encoder_2", TEXT),
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora.{}": ("unet", QUERY),
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.{}": ("unet", QUERY),
    "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer.{}": ("text_encoder", TEXT),
}


@pytest.mark.parametrize(("name", "place"), NAMES.items())
def test_names_of_kohya_and_diffusers_are_read(tmp_path: Path, name: str, place: tuple[str, str]) -> None:
    down, up = LINEAR
    save_file({name.format("down") + ".weight": down, name.format("up") + ".weight": up}, tmp_path / "a.safetensors")
    lora = read_lora(tmp_path / "a.safetensors")
    (layer,) = lora.layers.values()
    assert list(lora.layers) == [place]
    assert (layer.down == down.numpy()).all()
    assert (layer.up == up.numpy()).all()
    assert layer.scale == 1, "without an alpha"
    assert (lora.name, lora.file_hash) == ("a", short_hash(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("ends", [("A", "B"), ("A.default", "B.default")])
@pytest.mark.parametrize(
    ("metadata", "scale"),
    [
        ({}, 1),
        ({"unet.lora_alpha": 8, "unet.r": RANK}, 8 / RANK),
        ({"unet.lora_alpha": 8, "unet.alpha_pattern": {"attn2.to_q": 3, "attn1.to_q": 5}}, 5 / RANK),
        ({"unet.lora_alpha": 8, "unet.use_rslora": True}, 8 / RANK**0.5),
        ({"text_encoder.lora_alpha": 8}, 1),
    ],
)
def test_the_scale_of_pefts_layers_is_in_the_metadata(
    tmp_path: Path, ends: tuple[str, str], metadata: dict, scale: float
) -> None:
    start = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_"
    tensors = {f"{start}{end}.weight": each for end, each in zip(ends, LINEAR, strict=True)}
    save_file(tensors, tmp_path / "a.safetensors", {"lora_adapter_metadata": json.dumps(metadata)})
    ((place, layer),) = read_lora(tmp_path / "a.safetensors").layers.items()
    assert place == ("unet", QUERY)
    assert layer.scale == pytest.approx(scale)


def test_halves_large_ranks_and_bundled_embeddings_are_read(tmp_path: Path) -> None:
    wide = torch.ones(600, 8000, dtype=torch.bfloat16), torch.ones(4, 600, dtype=torch.float16)
    layers = {"lora_unet_conv_in": pair((6, 4, 3, 3), 1), "lora_unet_wide": wide}
    path = save_kohya(tmp_path / "a.safetensors", layers, **{"bundle_emb.hat.clip_l": torch.ones(1, 8)})
    lora = read_lora(path)
    assert lora.embeddings == ("hat",)
    assert lora.layers["unet", "conv_in"].down.shape == (RANK, 4, 3, 3)
    assert lora.layers["unet", "conv_in"].scale == ALPHA / RANK
    assert lora.layers["unet", "wide"].down.min() == 1, "larger than any embedding"
    assert lora.layers["unet", "wide"].scale == pytest.approx(ALPHA / 600)


def refused(path: Path, *words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_lora(path)
    assert caught.value.option == "teacher_lora"
    for each in words:
        assert re.search(each, str(caught.value)), str(caught.value)


@pytest.mark.parametrize(
    ("extra", "found"),
    [
        ("lora_unet_a.hada_w1_a", "a LoHa"),
        ("lora_unet_a.lokr_w1", "a LoKr"),
        ("lora_unet_a.dora_scale", "a DoRA"),
        ("unet.a.lora_magnitude_vector", "a DoRA"),
        ("lora_unet_a.lora_mid.weight", "lora_mid"),
        ("lora_unet_a.oft_blocks", "an OFT"),
        ("lora_unet_a.on_input", "an IA3"),
        ("lora_unet_a.diff", "whole weights"),
        ("lora_te3_a.lora_up.weight", "lora_te3_a"),
        ("transformer.blocks.0.to_q.lora_A.weight", "transformer"),
        ("model.diffusion_model.input_blocks.0.0.weight", "expected a LoRA"),
        ("lora_unet_a.lora_up.weight", "no lora_down"),
        ("unet.a.lora_B.weight", "no lora_down"),
    ],
)
def test_what_is_more_than_a_lora_is_refused_by_name(tmp_path: Path, extra: str, found: str) -> None:
    layers = {"lora_unet_" + QUERY: LINEAR}
    refused(save_kohya(tmp_path / "a.safetensors", layers, **{extra: torch.ones(4, 4)}), found)


def test_tensors_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    path, (down, up) = tmp_path / "a.safetensors", LINEAR
    for pair_of_them in ((down, up[:, :1]), (down[0], up), (down, up[..., None]), (down.int(), up), (down[:0], up[:, :0])):
        refused(save_kohya(path, {"lora_unet_a": pair_of_them}), "of the shapes")
    refused(save_kohya(path, {"lora_unet_a": (down * torch.nan, up)}), "not finite")
    refused(save_kohya(path, {"lora_unet_a": (down, up)}, **{"lora_unet_a.alpha": torch.ones(2)}), "alpha of 2 numbers")


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    refused(path, "There is no file")
    refused(tmp_path, "is a folder")
    torch.save(kohya({"lora_unet_a": LINEAR}), path)
    refused(path, "is a pickle")
    path.write_bytes(b"<html>not found</html>")
    refused(path, "web page|not a .safetensors")
    save_file({"emb_params": torch.ones(1, 768)}, path)
    refused(path, "expected a LoRA")
    save_file({"bundle_emb.hat.clip_l": torch.ones(1, 8)}, path)
    refused(path, "no layers")
    whole = save_kohya(path, {"lora_unet_a": LINEAR}).read_bytes()
    path.write_bytes(whole[:-3])
    refused(path, "not within the file")


def test_tensors_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """Ten thousand of them would take ten thousand times the file's memory."""
    data = np.ones(8, np.float32).tobytes()
    described = {
        f"lora_unet_{number}.lora_{part}.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, len(data)]}
        for number in range(2)
        for part, shape in (("down", [2, 4]), ("up", [4, 2]))
    }
    header = json.dumps(described).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    refused(path, "overlaps")
