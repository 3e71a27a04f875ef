"""What other tools and versions write besides, and what may lie beside the vectors in a pickle."""

from __future__ import annotations

import argparse
import collections
import pathlib
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import save_file

from ti_trainer.errors import EmbeddingFormatError
from ti_trainer.formats import FORMATS, read, write

BESIDE = {
    "losses": numpy.zeros(3),
    "texts": numpy.array(["a"], dtype=object),
    "best": numpy.float64(0.5),
    "count": numpy.int64(3),
    "device": torch.device("cpu"),
    "shape": torch.Size([1, 2]),
    "dtype": torch.float16,
    "layout": torch.strided,
    "args": argparse.Namespace(steps=3),
    "path": pathlib.PurePosixPath("a"),
    "words": {"a", "b"},
    "more words": frozenset(["a"]),
    "by word": collections.defaultdict(list, {"a": [1]}),
    "in order": collections.OrderedDict(a=1, b=None),
    "bytes": b"abc",
    "more bytes": bytearray(b"abc"),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_is_read_with_harmless_things_beside(
    protocol: int, zipped: bool, make, assert_same, tmp_path: Path
) -> None:
    embedding = make(name="Ünï", info={})
    vectors = embedding.vectors["clip_l"]
    about = {"name": "Ünï", "step": 500, "sd_checkpoint": "6ce0161689", "sd_checkpoint_name": "v1-5-pruned"}
    for terms in ({"*": vectors}, torch.nn.ParameterDict({"*": torch.nn.Parameter(vectors)})):
        data = {"string_to_param": terms, **about, **BESIDE}
        torch.save(data, tmp_path / "a.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
        assert_same(read(tmp_path / "a.pt"), embedding)


def with_an_attribute(tensor: torch.Tensor) -> torch.Tensor:
    tensor.learned_in = 500
    return tensor


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda vectors: vectors,
        lambda vectors: torch.nn.Parameter(vectors),
        lambda vectors: with_an_attribute(vectors.clone()),
        lambda vectors: with_an_attribute(torch.nn.Parameter(vectors.clone())),
        lambda vectors: [vectors],
        lambda vectors: (vectors,),
        lambda vectors: {"<cat>": vectors},
        lambda vectors: {"<cat>": torch.nn.Parameter(vectors), "losses": numpy.zeros(3), "step": 5},
    ],
)
def test_a_lone_tensor_is_read_however_it_is_wrapped(wrapped, make, tmp_path: Path) -> None:
    torch.save(wrapped(make().vectors["clip_l"]), tmp_path / "a.pt")
    assert torch.equal(read(tmp_path / "a.pt").vectors["clip_l"], make().vectors["clip_l"])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([torch.ones(2, 768)] * 3, "a list of 3 tensors; expected one"),
        ([1, 2], "a list of other values"),
        ([], "a list of other values"),
        ({"*": numpy.zeros((2, 768))}, "an array or object of another library"),
        ({"*": 5}, "type int where a tensor was expected"),
    ],
)
def test_what_is_not_one_tensor_is_said(data: object, said: str, tmp_path: Path) -> None:
    torch.save(data, tmp_path / "a.pt")
    with pytest.raises(EmbeddingFormatError, match=said):
        read(tmp_path / "a.pt")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_numbers_of_8_bits_are_read(dtype: torch.dtype, tmp_path: Path) -> None:
    vectors = torch.randn(2, 768).to(dtype)
    save_file({"x": vectors}, tmp_path / "a.safetensors")
    torch.save({"x": vectors}, tmp_path / "a.pt")
    for name in ("a.safetensors", "a.pt"):
        assert torch.equal(read(tmp_path / name).vectors["clip_l"], vectors.float())


@pytest.mark.parametrize("ending", [".safetensors", ".pti", ".pt"])
def test_sdxl_under_the_names_of_text_encoders_is_read(ending: str, tmp_path: Path) -> None:
    tensors = {"text_encoders_0": torch.randn(2, 768), "text_encoders_1": torch.randn(2, 1280)}
    (torch.save if ending == ".pt" else save_file)(tensors, tmp_path / f"a{ending}")
    embedding = read(tmp_path / f"a{ending}")
    assert (embedding.name, embedding.family) == ("a", "SDXL")
    assert torch.equal(embedding.vectors["clip_l"], tensors["text_encoders_0"])
    assert torch.equal(embedding.vectors["clip_g"], tensors["text_encoders_1"])
    write(embedding, tmp_path / "b.safetensors")
    assert read(tmp_path / "b.safetensors").family == "SDXL"


def test_a_card_that_nobody_could_read_is_not_written(make, tmp_path: Path) -> None:
    for ending in FORMATS["card"].extensions:
        with pytest.raises(EmbeddingFormatError, match="too many numbers for a card"):
            write(make("SDXL", 400), tmp_path / f"a{ending}")
        write(make("SD 1.x", 75), tmp_path / f"a{ending}")
        assert read(tmp_path / f"a{ending}").num_vectors == 75
