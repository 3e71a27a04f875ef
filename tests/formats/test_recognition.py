"""A file is what its structure says, whatever its ending and first byte; one that is no embedding is named in a sentence."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from ti_trainer.errors import EmbeddingFormatError
from ti_trainer.formats import read, write

ONE = torch.ones(2, 768)


def described(length: int, content: bytes = b"\0" * 3072) -> bytes:
    """A .safetensors of one vector whose header has this length."""
    header = json.dumps({"emb_params": {"dtype": "F32", "shape": [1, 768], "data_offsets": [0, 3072]}}).encode()
    return struct.pack("<Q", length) + header.ljust(length) + content


@pytest.mark.parametrize("lengths", [range(100, 363), [0x4B50, 0x80, 0x280, 0x380, 0x480, 0x580, 0x8002, 0xD8FF, 0x504E]])
def test_a_header_of_any_length_is_read(lengths, tmp_path: Path) -> None:
    """0x..80 looks like a pickle's beginning, 0x4B50 is "PK"."""
    for length in lengths:
        (tmp_path / "a.safetensors").write_bytes(described(length))
        assert read(tmp_path / "a.safetensors").widths == {"clip_l": 768}, length


def test_our_own_headers_of_any_length_are_read(make, assert_same, tmp_path: Path) -> None:
    for length in range(32):
        embedding = make(info={"note": "x" * length * 8})
        write(embedding, tmp_path / "a.safetensors")
        assert_same(read(tmp_path / "a.safetensors"), embedding)


@pytest.mark.parametrize("name", ["a.pt", "a.bin", "a.png", "a.safetensors", "a.pti"])
def test_the_ending_makes_no_difference(name: str, make, tmp_path: Path) -> None:
    for format in ("safetensors", "webui", "card"):
        source = tmp_path / f"source{'.pt' if format == 'webui' else '.png' if format == 'card' else '.safetensors'}"
        write(make(), source, format)
        source.replace(tmp_path / name)
        assert torch.equal(read(tmp_path / name).vectors["clip_l"], make().vectors["clip_l"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty: .* again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3819\n", "is a Git LFS pointer.*Download"),
        (b"<!DOCTYPE html><html>log in</html>", "is a web page.*Download"),
        (b"\xef\xbb\xbf \n<HTML>", "is a web page.*Download"),
        ("<html>".encode("utf-16"), "is a web page.*Download"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is a web page.*Download"),
        (b'{"error":"Unauthorized"}', r'response of a website \({"error":"Unauthorized"}\).*Download'),
        (b'{"error":"' + b"x" * 9000 + b'"}', "response of a website.*Download"),
        (b"Invalid username or password.", r"is text \(Invalid username or password\.\).*Download"),
        (b"\0" * 9000, "zeros only.*Download"),
        (b"7z\xbc\xaf'\x1c...", "7-Zip archive: unpack it"),
        (b"GIF89a...", "GIF image.*Choose"),
        (b"\x93NUMPY\1\0", "numpy array.*Choose"),
        (b"\x00\x01\x02\x03 something", "not a .safetensors file.*Choose"),
    ],
)
def test_files_that_are_something_else_are_named(content: bytes, said: str, tmp_path: Path) -> None:
    for name in ("a.pt", "a.safetensors", "a.png"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(EmbeddingFormatError, match=rf"^{name} cannot be read as an embedding: it .*{said}"):
            read(tmp_path / name)


@pytest.mark.parametrize("kept", [9, 50, 100, -3073])
def test_a_file_cut_inside_its_header_is_cut_short(kept: int, tmp_path: Path) -> None:
    for name in ("a.safetensors", "a.pt"):
        (tmp_path / name).write_bytes(described(200)[:kept])
        with pytest.raises(EmbeddingFormatError, match=r"is a \.safetensors file that was cut short.* again\.$"):
            read(tmp_path / name)


def test_another_zip_archive_is_to_be_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("my-cat/my-cat.pt", b"x")
    with pytest.raises(EmbeddingFormatError, match=r"a zip archive .* Unpack it\."):
        read(tmp_path / "a.pt")


def test_a_folder_named_like_a_file_is_a_folder(tmp_path: Path) -> None:
    for name in ("x.png", "x.pt"):
        (tmp_path / name).mkdir()
        with pytest.raises(EmbeddingFormatError, match=r"^The folder .*x\.\w+ holds no learned_embeds"):
            read(tmp_path / name)


KINDS: dict[str, list[dict[str, torch.Tensor]]] = {
    "a LoRA": [
        {f"lora_unet_{number}.lora_{way}.weight": ONE for number in range(3) for way in ("up", "down")},
        {"lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha": ONE},
        {"unet.down_blocks.0.attn.to_out.0.lora_A.weight": ONE, "unet.down_blocks.0.attn.to_out.0.lora_B.weight": ONE},
        {"base_model.model.text_model.encoder.layers.0.self_attn.q_proj.lora_A.default.weight": ONE},
        {"down_blocks.0.attentions.0.attn1.processor.to_q_lora.down.weight": ONE},
        {"text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight": ONE},
        {"diffusion_model.blocks.0.attn.hada_w1_a": ONE, "diffusion_model.blocks.0.attn.hada_w1_b": ONE},
        {"lycoris_down_blocks_0.lokr_w1": ONE, "lycoris_down_blocks_0.lokr_w2": ONE},
        {"lora_unet_a.lora_up.weight": ONE, "bundle_emb.my-cat.string_to_param.*": ONE},
    ],
    "a hypernetwork": [{"768.0.linear1.weight": ONE, "320.0.linear1.weight": ONE}],
    "a VAE": [
        {"encoder.conv_in.weight": ONE, "decoder.conv_in.weight": ONE, "quant_conv.weight": ONE},
        {"first_stage_model.decoder.up.0.block.0.conv1.weight": ONE},
        {"decoder.up_blocks.0.resnets.0.conv1.weight": ONE},
    ],
    "a ControlNet": [{"control_model.input_hint_block.0.weight": ONE}, {"controlnet_cond_embedding.conv_in.weight": ONE}],
    "a checkpoint": [
        {"model.diffusion_model.input_blocks.0.0.weight": ONE, "first_stage_model.decoder.conv_in.weight": ONE}
    ],
    "a Flux checkpoint": [{"double_blocks.0.img_attn.qkv.weight": ONE}],
    "a U-Net alone": [{"down_blocks.0.resnets.0.conv1.weight": ONE, "mid_block.resnets.0.conv1.weight": ONE}],
    "a text encoder": [{"text_model.embeddings.token_embedding.weight": ONE}],
    "an upscaler": [{"conv_first.weight": ONE, "body.0.rdb1.conv1.weight": ONE}],
}


@pytest.mark.parametrize(("what", "tensors"), [(what, each) for what, all_of_it in KINDS.items() for each in all_of_it])
def test_tensors_of_something_else_are_named(what: str, tensors, tmp_path: Path) -> None:
    save_file({name: each.clone() for name, each in tensors.items()}, tmp_path / "a.safetensors")
    torch.save(tensors, tmp_path / "a.pt")
    torch.save({"state_dict": tensors, "step": 3}, tmp_path / "b.pt")
    for name in ("a.safetensors", "a.pt", "b.pt"):
        with pytest.raises(EmbeddingFormatError, match=rf"it is {what}.*Choose an embedding"):
            read(tmp_path / name)


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".bin"])
def test_a_large_file_is_named_by_what_it_says_of_its_tensors(ending: str, tmp_path: Path) -> None:
    """Its numbers are not read: a checkpoint of 7 GB may lie in the folder of embeddings."""
    path = tmp_path / f"big{ending}"
    names = [f"model.diffusion_model.input_blocks.{number}" for number in range(2000)]
    if ending == ".safetensors":
        header = {
            name: {"dtype": "F32", "shape": [2**20], "data_offsets": [n * 2**22, (n + 1) * 2**22]}
            for n, name in enumerate(names)
        }
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text)
        with path.open("r+b") as file:
            file.truncate(8 + len(text) + 2**33)  # full of holes
    else:
        numbers = torch.empty(10_000_000)
        torch.save({"state_dict": dict.fromkeys(names, numbers)}, path, _use_new_zipfile_serialization=ending == ".pt")
    with pytest.raises(EmbeddingFormatError, match=r"it is a checkpoint\. Choose an embedding"):
        read(path)


def test_a_large_hypernetwork_of_the_webui_is_named(tmp_path: Path) -> None:
    layers = {"linear.0.weight": torch.empty(3000, 3000)}
    torch.save(
        {768: (layers, layers), 320: (layers, layers), "step": 5, "name": "a", "activation_func": "relu"}, tmp_path / "a.pt"
    )
    with pytest.raises(EmbeddingFormatError, match="it is a hypernetwork"):
        read(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "widths",
    [
        {"clip_l": 768, "t5": 4096},
        {"clip_g": 1280, "t5": 4096},
        {"clip_l": 768, "clip_g": 1280, "t5": 4096},
        {"t5": 4096},
        {"t5xxl": 4096},
        {"clip_l": 768, "t5xxl": 4096},
        {"text_encoders_0": 768, "text_encoders_1": 4096},
        {"<cat>": 4096},
    ],
)
def test_embeddings_with_vectors_for_t5_are_named(widths: dict[str, int], tmp_path: Path) -> None:
    tensors = {name: torch.ones(2, width) for name, width in widths.items()}
    save_file(tensors, tmp_path / "a.safetensors")
    torch.save(tensors, tmp_path / "a.pt")
    for name in ("a.safetensors", "a.pt"):
        with pytest.raises(EmbeddingFormatError, match=r"an embedding for Flux or Stable Diffusion 3.*T5"):
            read(tmp_path / name)


def test_half_an_sdxl_embedding_says_where_the_other_half_is(make, tmp_path: Path) -> None:
    save_file({"clip_g": torch.ones(2, 1280)}, tmp_path / "a.safetensors")
    with pytest.raises(EmbeddingFormatError, match=r"a\.safetensors is one half of an SDXL embedding.*clip_l"):
        read(tmp_path / "a.safetensors")
    write(make("SDXL"), tmp_path / "learned_embeds.safetensors", "diffusers")
    with pytest.raises(EmbeddingFormatError, match=r"half of an SDXL embedding.*choose learned_embeds\.safetensors"):
        read(tmp_path / "learned_embeds_2.safetensors")


@pytest.mark.parametrize("saver", [save_file, torch.save])
def test_swapped_widths_are_corrected_and_wrong_ones_are_named(saver: Callable[..., None], tmp_path: Path) -> None:
    saver({"clip_g": torch.full((2, 768), 0.5), "clip_l": torch.ones(2, 1280)}, tmp_path / "a.safetensors")
    embedding = read(tmp_path / "a.safetensors")
    assert (embedding.family, embedding.vectors["clip_l"][0, 0].item()) == ("SDXL", 0.5)
    assert "swapped" in embedding.info["repaired"]
    for wrong in ({"clip_g": 768, "clip_l": 768}, {"clip_g": 768}, {"clip_l": 1280}):
        saver({name: torch.ones(2, width) for name, width in wrong.items()}, tmp_path / "a.safetensors")
        with pytest.raises(EmbeddingFormatError, match=r"of width .*; SDXL's clip_l has width 768 and its clip_g 1280"):
            read(tmp_path / "a.safetensors")


def test_numbers_of_a_type_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    content = save({"a": torch.ones(2, 768, dtype=torch.float16)}).replace(b'"F16"', b'"F4Z"')
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(EmbeddingFormatError, match=r"numbers have the type 'F4Z'.*float32"):
        read(tmp_path / "a.safetensors")


def test_a_card_whose_text_an_optimizer_compressed_is_read(make, assert_same, tmp_path: Path) -> None:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    write(make(), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as card:
        for packed, international in ((True, False), (False, True), (True, True)):
            text = PngInfo()
            add = text.add_itxt if international else text.add_text
            add("sd-ti-embedding", card.info["sd-ti-embedding"], zip=packed)
            with io.BytesIO() as made:
                Image.new("RGB", (8, 8)).save(made, "PNG", pnginfo=text)
                (tmp_path / "b.png").write_bytes(made.getvalue())
            assert_same(read(tmp_path / "b.png"), make())
