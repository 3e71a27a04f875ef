"""Embeddings in .safetensors are read and written with NumPy: the numbers and bytes equal those of torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from ti_trainer.embedding import Embedding
from ti_trainer.formats import read, write
from ti_trainer.formats.safetensors_file import _FLOAT8, _float8_values, array_of

TORCH_NAMES = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
TORCH_NAMES |= {"F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz"}


@pytest.mark.parametrize("dtype", _FLOAT8)
def test_every_8_bit_float_has_the_value_that_torch_gives_it(dtype: str) -> None:
    expected = torch.arange(256, dtype=torch.uint8).view(getattr(torch, TORCH_NAMES[dtype])).float().numpy()
    expected = np.where(np.isinf(expected), np.nan, expected)  # both are refused
    assert np.array_equal(_float8_values(dtype), expected, equal_nan=True)
    assert np.array_equal(np.signbit(_float8_values(dtype))[:1], [False])


@pytest.mark.parametrize(("dtype", "name"), [("BF16", "bfloat16"), ("F16", "float16")])
def test_every_16_bit_float_has_the_value_that_torch_gives_it(dtype: str, name: str) -> None:
    codes = np.arange(2**16, dtype="<u2")
    expected = torch.from_numpy(codes.view(np.int16)).view(getattr(torch, name)).float().numpy()
    found = array_of({"dtype": dtype, "shape": [256, 256], "data": codes.tobytes()}).astype(np.float32)
    assert np.array_equal(found.reshape(-1), expected, equal_nan=True)


def test_doubles_that_float32_cannot_hold_are_refused_without_a_warning(tmp_path: Path) -> None:
    safetensors.torch.save_file({"x": torch.full((1, 768), 1e300, dtype=torch.float64)}, tmp_path / "a.safetensors")
    with pytest.raises(Exception, match="768 of its 768 numbers are not finite"):
        read(tmp_path / "a.safetensors")


def test_what_is_written_from_arrays_has_the_bytes_of_what_is_written_from_tensors(tmp_path: Path) -> None:
    vectors = {"clip_l": torch.randn(2, 768), "clip_g": torch.randn(2, 1280)}
    write(Embedding("x-word", vectors, 7), tmp_path / "a.safetensors")
    write(read(tmp_path / "a.safetensors"), tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    loaded = safetensors.torch.load_file(tmp_path / "b.safetensors")
    assert all(torch.equal(loaded[encoder], each) for encoder, each in vectors.items())


def test_vectors_of_a_file_are_tensors_with_memory_of_their_own(tmp_path: Path) -> None:
    write(Embedding("x-word", {"clip_l": torch.ones(2, 768)}), tmp_path / "a.safetensors")
    embedding = read(tmp_path / "a.safetensors")
    embedding.vectors["clip_l"].mul_(2)
    assert embedding.vectors["clip_l"] is embedding.vectors["clip_l"]
    assert embedding.arrays["clip_l"][0, 0] == 2
    assert read(tmp_path / "a.safetensors").vectors["clip_l"].sum() == 2 * 768


def test_renaming_does_not_convert_the_vectors() -> None:
    program = (
        "import json, sys, numpy as np; from ti_trainer.embedding import Embedding;"
        "made = Embedding('a', {'clip_l': np.ones((2, 768), np.float32)}).renamed('b');"
        "before = 'torch' in sys.modules; made.vectors;"
        "print(json.dumps([made.name, made.widths, before, 'torch' in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(done.stdout) == ["b", {"clip_l": 768}, False, True]
