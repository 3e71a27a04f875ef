"""--model with a file that is no checkpoint: each is named, and what to do is said."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ti_trainer import tiny_model
from ti_trainer.errors import ModelError
from ti_trainer.hosts.diffusers.loading import load

ONE = torch.ones(2, 768)
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3819\n"


def refused(path: Path, said: str) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        load(str(path), "cpu")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", [".ckpt", ".safetensors", ".pt"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><html>log in</html>", "it is a web page"),
        (b'{"error":"Unauthorized"}', "the response of a website"),
        (LFS, "it is a Git LFS pointer"),
        (b"\xd0\x07\0\0\0\0\0\0{" + b'"a":', r"it is a \.safetensors file that was cut short"),
        (b"\x01\x02\x03\x04 something", "it is damaged"),
    ],
)
def test_files_without_tensors_are_named(ending: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / f"a{ending}").write_bytes(content)
    refused(tmp_path / f"a{ending}", said)


@pytest.mark.parametrize("saver", [save_file, torch.save])
@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["unet.down_blocks.0.attn.to_out.0.lora_A.weight", "unet.down_blocks.0.attn.to_out.0.lora_B.weight"], "is a LoRA;"),
        (["lora_unet_down_blocks_0.hada_w1_a"], "is a LoRA"),
        (["encoder.conv_in.weight", "decoder.conv_in.weight", "quant_conv.weight"], "is a VAE;"),
        (["encoder.down_blocks.0.resnets.0.conv1.weight", "decoder.conv_in.weight"], "is a VAE;"),
        (["control_model.input_hint_block.0.weight"], "is a ControlNet;"),
        (["768.0.linear.weight", "320.0.linear.weight"], "is a hypernetwork;"),
        (["emb_params"], "is an embedding;"),
        (["<cat>"], "is an embedding;"),
        (["clip_l", "clip_g"], "is an embedding;"),
        (["t5"], "is an embedding;"),
    ],
)
def test_tensors_of_something_else_are_named(saver, names: list[str], said: str, tmp_path: Path) -> None:
    for ending in (".safetensors", ".ckpt"):  # whatever the ending
        saver({name: ONE.clone() for name in names}, tmp_path / f"a{ending}")
        refused(tmp_path / f"a{ending}", said)


def test_pickles_of_something_else_are_named(tmp_path: Path) -> None:
    layers = {"linear.weight": torch.ones(2, 2)}
    for data, said in (
        ({"string_to_param": {"*": ONE}, "name": "a"}, "is an embedding"),
        (ONE, "is an embedding"),
        ({768: (layers, layers), 320: (layers, layers), "name": "a"}, "is a hypernetwork"),
        ([1, 2], "is a file without weights"),
    ):
        for ending in (".ckpt", ".pt"):
            torch.save(data, tmp_path / f"a{ending}")
            refused(tmp_path / f"a{ending}", said)


def test_files_with_another_ending_are_named(tmp_path: Path) -> None:
    vae = {"encoder.conv_in.weight": ONE, "decoder.conv_in.weight": ONE.clone()}
    for data, said in (
        ({"string_to_param": {"*": ONE}, "name": "a"}, r"an embedding for SD 1\.x"),
        ({"t5": torch.ones(2, 4096)}, "an embedding"),
        ({"state_dict": vae}, "a VAE"),
        (vae, "a VAE"),
        ({"lora_unet_a.lora_up.weight": ONE}, "a LoRA"),
        ({"model.diffusion_model.input_blocks.0.0.weight": ONE}, "a checkpoint with another ending than"),
        ({"linear.weight": torch.ones(2, 2, 2)}, "a file with another ending than"),
    ):
        torch.save(data, tmp_path / "a.pt")
        refused(tmp_path / "a.pt", rf"There is no model at .*: it is {said}.*expected")
    save_file(vae, tmp_path / "a.bin")
    refused(tmp_path / "a.bin", "There is no model at .*: it is a VAE, expected")


def test_folders_of_something_else_are_named(tmp_path: Path) -> None:
    refused(tmp_path, "There is no model at .*a folder of something else")
    (tmp_path / "adapter_config.json").write_text("{}")
    refused(tmp_path, "There is no model at .*the folder of a LoRA")


def test_a_folder_cloned_without_git_lfs_says_so(tmp_path: Path) -> None:
    shutil.copytree(tiny_model.MODEL, tmp_path / "model")
    file = next((tmp_path / "model" / "unet").glob("*.safetensors"))
    file.write_bytes(LFS)
    with pytest.raises(ModelError, match=rf"{file.name} cannot be read: it is a Git LFS pointer"):
        load(str(tmp_path / "model"), "cpu")


def test_a_header_larger_than_any_models_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes((10**7).to_bytes(8, "little") + b"{" * (10**7 + 8))
    refused(tmp_path / "a.safetensors", "its header has 10000000 bytes")
