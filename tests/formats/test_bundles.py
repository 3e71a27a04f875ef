"""Embeddings inside a LoRA: read, taken out and put in, with every other byte kept."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch

from ti_trainer.embedding import Embedding
from ti_trainer.errors import ConfigError, EmbeddingFormatError
from ti_trainer.formats import read
from ti_trainer.formats.bundles import bundled, open_bundle, put_in, take_out

METADATA = {"ss_network_dim": "8", "note": 'é "quoted" \\ \u2028', "sshs_model_hash": "abc"}


def lora(path: Path, words: dict[str, torch.Tensor] | None = None, te: str = "lora_te") -> Path:
    tensors = {
        f"{te}_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.randn(7, 3).half(),
        "lora_unet_down.alpha": torch.tensor(4.0),
        "lora_unet_down.lora_down.weight": torch.randn(3, 5).bfloat16(),
        "lora_unet_down.odd": torch.arange(3, dtype=torch.uint8),
    }
    safetensors.torch.save_file({**tensors, **(words or {})}, path, METADATA)
    return path


def raw(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Dtype, shape and bytes of each tensor, by the official reader."""
    return {
        name: (each["dtype"], tuple(each["shape"]), bytes(each["data"]))
        for name, each in safetensors.deserialize(path.read_bytes())
    }


def metadata(path: Path) -> dict[str, str]:
    with safetensors.safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize("family", ["SD 1.x", "SD 2.x", "SDXL"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_what_is_put_in_is_taken_out_and_the_rest_keeps_its_bytes(family: str, dtype: str, make, tmp_path: Path) -> None:
    source, target = lora(tmp_path / "lora.safetensors"), tmp_path / "new.safetensors"
    embedding = make(family)
    put_in(embedding, source, target, dtype)
    before, after = raw(source), raw(target)
    assert {name: after[name] for name in before} == before
    assert metadata(target) == metadata(source) == METADATA
    assert set(after) - set(before) == {f"bundle_emb.my-cat.{encoder}" for encoder in embedding.widths}
    found = take_out(target, "my-cat")
    assert (found.name, found.family) == ("my-cat", family)
    for encoder, each in embedding.vectors.items():
        wanted = each.to({"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]).float()
        assert torch.equal(found.vectors[encoder], wanted)
    assert safetensors.torch.load_file(target)["lora_unet_down.alpha"] == 4, "aligned"


def test_what_others_write_is_read(tmp_path: Path) -> None:
    words = {
        "bundle_emb.<cat>.clip_l": torch.ones(2, 768),  # OneTrainer
        "bundle_emb.xl.clip_l": torch.ones(1, 768),
        "bundle_emb.xl.clip_g": torch.ones(1, 1280).half(),
        "bundle_emb.flux.clip_l": torch.ones(1, 768),
        "bundle_emb.flux.t5": torch.ones(2, 4096),
        "bundle_emb.old.string_to_param.*": torch.full((3, 1024), 2.0),  # scripts of LyCORIS
        "bundle_emb.kohya.emb_params": torch.ones(2, 768),
        "bundle_emb.v1.5 b.clip_l": torch.ones(2, 768),
        "bundle_emb.out.clip_l": torch.ones(2, 768),
        "bundle_emb.out.clip_l_out": torch.ones(2, 768),
    }
    path = lora(tmp_path / "lora.safetensors", words)
    bundle = bundled(path)
    assert set(bundle.words) == {"<cat>", "xl", "flux", "old", "kohya", "v1.5 b", "out"}
    assert bundle.shapes("xl") == {"clip_l": [1, 768], "clip_g": [1, 1280]}
    families = {name: take_out(path, name).family for name in bundle.words if name != "out"}
    assert families == {
        "<cat>": "SD 1.x", "xl": "SDXL", "flux": "Flux", "old": "SD 2.x", "kohya": "SD 1.x", "v1.5 b": "SD 1.x"
    }  # fmt: skip
    with pytest.raises(EmbeddingFormatError, match="output embeddings"):
        take_out(path, "out")
    with pytest.raises(ConfigError, match=r"no embedding 'dog' in it \(found: "):
        take_out(path, "dog")
    with pytest.raises(EmbeddingFormatError, match="a LoRA with embeddings bundled in it"):
        read(path)


def test_what_we_write_is_what_the_webui_and_comfyui_look_for(make, tmp_path: Path) -> None:
    path = tmp_path / "new.safetensors"
    put_in(make("SD 1.x"), lora(tmp_path / "lora.safetensors"), path)
    for name in raw(path):
        first, _, rest = name.partition(".")
        if first == "bundle_emb":
            assert rest.split(".", 1) == ["my-cat", "clip_l"]  # modules of the WebUI's Lora
            assert name.endswith(".clip_l")  # ComfyUI's bundled_embed


def test_a_name_that_is_taken_is_replaced_only_if_wanted(make, tmp_path: Path) -> None:
    source = lora(
        tmp_path / "lora.safetensors", {"bundle_emb.My-Cat.clip_l": torch.ones(5, 768), "bundle_emb.b.x": torch.ones(1, 768)}
    )
    target = tmp_path / "new.safetensors"
    with pytest.raises(ConfigError, match="has an embedding 'My-Cat' in it already"):
        put_in(make(), source, target)
    assert not target.exists()
    put_in(make(), source, target, replace=True)
    assert set(open_bundle(target).words) == {"my-cat", "b"}
    rest = {name: each for name, each in raw(source).items() if "My-Cat" not in name}
    assert {name: each for name, each in raw(target).items() if "my-cat" not in name} == rest
    put_in(make(name="c"), target, target, replace=True)  # over the file that is read
    assert set(open_bundle(target).words) == {"my-cat", "b", "c"}


def test_what_cannot_be_written_is_refused(make, tmp_path: Path) -> None:
    source, target = lora(tmp_path / "lora.safetensors"), tmp_path / "new.safetensors"
    with pytest.raises(ConfigError, match="contains a dot"):
        put_in(make(name="v1.5"), source, target)
    safetensors.torch.save_file({"bundle_emb.a.clip_l": torch.ones(1, 768)}, tmp_path / "only.safetensors")
    with pytest.raises(EmbeddingFormatError, match=r"only.safetensors is no LoRA"):
        put_in(make(), tmp_path / "only.safetensors", target)
    safetensors.torch.save_file({"emb_params": torch.ones(1, 768)}, tmp_path / "embedding.safetensors")
    safetensors.torch.save_file({"decoder.conv_in.weight": torch.ones(1)}, tmp_path / "vae.safetensors")
    for name, message in (("embedding", "is no LoRA"), ("vae", "is a VAE")):
        with pytest.raises(EmbeddingFormatError, match=message):
            put_in(make(), tmp_path / f"{name}.safetensors", target)
    broken = Embedding("x", {"clip_l": torch.full((1, 768), torch.nan)})
    with pytest.raises(EmbeddingFormatError, match="not finite"):
        put_in(broken, source, target)
    assert not target.exists()


def test_the_lora_is_copied_in_little_memory(make, tmp_path: Path) -> None:
    source = tmp_path / "large.safetensors"
    size = 48 * 2**20
    header = json.dumps({"lora_unet_a.weight": {"dtype": "F16", "shape": [size // 2], "data_offsets": [0, size]}}).encode()
    with source.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    embedding = make()
    tracemalloc.start()
    put_in(embedding, source, tmp_path / "new.safetensors")
    take_out(tmp_path / "new.safetensors", "my-cat")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8e6


def described(**entry: Any) -> bytes:
    header = json.dumps(
        {"bundle_emb.a.clip_l": {"dtype": "F32", "shape": [1, 768], "data_offsets": [0, 3072], **entry}}
    ).encode()
    return len(header).to_bytes(8, "little") + header + b"\0" * 3072


@pytest.mark.parametrize(
    "content",
    [
        described(data_offsets=[0, 10**15]),
        described(data_offsets=[-8, 3064]),
        described(data_offsets=[3072, 0]),
        described(data_offsets=[0]),
        described(data_offsets="ab"),
        described(shape=[10**9, 768]),
        described(shape=[1] * 60),
        described(shape=None),
        described(dtype=7),
        described(dtype={"a": 1}),
        described(dtype="F4"),
        (10**12).to_bytes(8, "little") + b"{" + b" " * 4096,
        (4).to_bytes(8, "little") + b'{"a"' + b" " * 100,
        (2).to_bytes(8, "little") + b"[]",
        b"",
        b"PK\x03\x04" + b"\0" * 100,
    ],
)
def test_hostile_files_are_refused(content: bytes, make, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(EmbeddingFormatError, match=r"x\.safetensors"):
        take_out(path, "a")
    found = bundled(path)
    assert found is None or found.words


def test_a_file_that_grows_by_copying_is_refused(make, tmp_path: Path) -> None:
    header = {f"lora_unet_{each}.x": {"dtype": "U8", "shape": [2**20], "data_offsets": [0, 2**20]} for each in range(1000)}
    text = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 2**20)
    with pytest.raises(EmbeddingFormatError, match="overlaps another"):
        put_in(make(), tmp_path / "x.safetensors", tmp_path / "new.safetensors")
    assert not (tmp_path / "new.safetensors").exists()


def test_other_files_hold_none(tmp_path: Path) -> None:
    assert bundled(lora(tmp_path / "lora.safetensors")) is None
    assert bundled(tmp_path / "missing.safetensors") is None
    assert bundled(tmp_path) is None
