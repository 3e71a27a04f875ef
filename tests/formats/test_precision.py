"""fp16 and bf16 in every format that holds them; vectors for T5."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from ti_trainer.embedding import Embedding
from ti_trainer.errors import EmbeddingFormatError
from ti_trainer.formats import FORMATS, format_of, read, write
from ti_trainer.formats.precision import about_loss, encoded, rounded

IN_TORCH = {"fp16": torch.float16, "bf16": torch.bfloat16}
CASES = [
    (name, ending, dtype)
    for name, form in FORMATS.items()
    for ending in form.extensions
    for dtype in ("fp16", "bf16")
    if dtype in form.dtypes
]


def test_bf16_is_rounded_as_torch_does() -> None:
    numbers = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x00000001, 0x80000000], np.uint32).view(
        np.float32
    )  # halfway, tiny, -0
    for each in (numbers, bits):
        wanted = torch.from_numpy(each).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
        np.testing.assert_array_equal(encoded(each, "bf16"), wanted)


@pytest.mark.parametrize(("name", "ending", "dtype"), CASES)
@pytest.mark.parametrize("family", ["SD 1.x", "SDXL"])
def test_every_format_keeps_the_dtype(name: str, ending: str, dtype: str, family: str, make, tmp_path: Path) -> None:
    if (name, family) == ("webui", "SDXL"):
        pytest.skip("it holds one text encoder")
    embedding = make(family)
    path = tmp_path / f"my-cat{ending}"
    write(embedding, path, name, dtype)
    for encoder, each in read(path).vectors.items():
        assert torch.equal(each, embedding.vectors[encoder].to(IN_TORCH[dtype]).float())
    if ending == ".safetensors":
        assert {each.dtype for each in safetensors.torch.load_file(path).values()} == {IN_TORCH[dtype]}
    assert path.stat().st_size < 0.6 * sum(4 * each.numel() for each in embedding.vectors.values()) + 2000


def test_the_loss_is_said_and_what_does_not_fit_refused(make, tmp_path: Path) -> None:
    assert "fp16: " in about_loss(make(), "fp16")
    assert about_loss(make(), "fp32") == about_loss(Embedding("x", {"clip_l": torch.ones(1, 8)}), "bf16") == ""
    large = Embedding("x", {"clip_l": torch.full((1, 8), 1e5)})
    with pytest.raises(EmbeddingFormatError, match="up to 100000, too large for fp16"):
        write(large, tmp_path / "x.safetensors", dtype="fp16")
    assert rounded(large, "bf16").vectors["clip_l"][0, 0] == torch.tensor(1e5).bfloat16()
    with pytest.raises(EmbeddingFormatError, match="the format card holds fp32 only"):
        write(make(), tmp_path / "x.png", dtype="bf16")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["t5", "t5xxl"])
@pytest.mark.parametrize("others", [{}, {"clip_l": 768}, {"clip_l": 768, "clip_g": 1280}])
@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_vectors_for_t5_are_kept_by_formats_that_can_hold_them(key: str, others: dict, ending: str, tmp_path: Path) -> None:
    tensors = {name: torch.randn(2, width) for name, width in others.items()} | {key: torch.randn(3, 4096)}
    source = tmp_path / f"flux{ending}"
    if ending == ".pt":
        torch.save(tensors, source)
    else:
        safetensors.torch.save_file(tensors, source)
    with pytest.raises(EmbeddingFormatError, match="text encoder T5, which are not supported"):
        read(source)
    embedding = read(source, t5=True)
    assert embedding.family == {0: "T5", 1: "Flux", 2: "SD 3"}[len(others)]
    for name, form in FORMATS.items():
        target = tmp_path / f"new-{name}{form.extensions[0]}"
        if "t5" not in form.holds:
            with pytest.raises(
                EmbeddingFormatError, match=r"T5, which the format .* cannot hold. Choose safetensors or onetrainer"
            ):
                write(embedding, target, name)
            continue
        write(embedding, target, name)
        written = safetensors.torch.load_file(target)
        assert set(written) == {*others, "t5xxl" if name == "safetensors" else "t5"}
        again = read(target, t5=True)
        assert all(torch.equal(again.vectors[encoder], each) for encoder, each in embedding.vectors.items())


def test_a_clip_l_that_onetrainer_called_clip_g_is_named_again(tmp_path: Path) -> None:
    tensors = {"clip_g": torch.ones(2, 768), "t5": torch.ones(2, 4096)}  # its issue 514
    safetensors.torch.save_file(tensors, tmp_path / "flux.safetensors")
    embedding = read(tmp_path / "flux.safetensors", t5=True)
    assert embedding.widths == {"clip_l": 768, "t5": 4096}
    assert "clip_l" in embedding.info["repaired"]


def test_other_files_are_refused_as_before_where_t5_is_allowed(tmp_path: Path) -> None:
    for tensors, message in (
        ({"t5": torch.ones(2, 8), "clip_l": torch.ones(2, 768)}, "Flux"),
        ({"t5": torch.ones(2, 4096), "other": torch.ones(2, 768)}, "Flux"),
        ({"t5": torch.ones(2, 4096), "t5xxl": torch.ones(2, 4096)}, "Flux"),
        ({"clip_g": torch.ones(2, 1280)}, "one half"),
        ({"clip_l": torch.ones(2, 768), "t5": torch.full((2, 4096), torch.nan)}, "not finite"),
    ):
        safetensors.torch.save_file(tensors, tmp_path / "x.safetensors")
        with pytest.raises(EmbeddingFormatError, match=message):
            read(tmp_path / "x.safetensors", t5=True)
    with pytest.raises(EmbeddingFormatError, match="expected one of"):
        format_of(tmp_path / "x.txt")
