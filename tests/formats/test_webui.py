"""What the WebUI accepts: its safe unpickler's rules (modules/safe.py of v1.10.1), its checksum, its optimizer files."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from ti_trainer.errors import EmbeddingFormatError
from ti_trainer.formats import read, write
from ti_trainer.formats.webui_optimizer import checksum, read_optimizer, write_optimizer

INTEROP = Path(__file__).parents[1] / "fixtures" / "interop"
ALLOWED_NAMES = re.compile(r"^([^/]+)/((data/\d+)|version|(data\.pkl))$")  # those of v1.9, which are the fewest
ALLOWED_GLOBALS = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch FloatStorage", "torch LongStorage"}


class WebuiUnpickler(pickle.Unpickler):
    """The part of the WebUI's allow-list that an embedding has any business with."""

    def persistent_load(self, reference: Any) -> Any:
        assert reference[0] == "storage"
        return torch.storage.TypedStorage(_internal=True)

    def find_class(self, module: str, name: str) -> Any:
        assert f"{module} {name}" in ALLOWED_GLOBALS
        return super().find_class(module, name)


def passes_the_webui(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        assert [name for name in archive.namelist() if not ALLOWED_NAMES.match(name)] == []
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        assert len(pickles) == 1
        with archive.open(pickles[0]) as file:
            WebuiUnpickler(file).load()


def test_the_dict_is_exactly_the_webuis(make, tmp_path: Path) -> None:
    embedding = make(checkpoint_hash="6ce0161689b3853acaa03779ec93eafe75a02f4ced659bee03f50797806fa2fa", info={"x": 1})
    write(embedding, tmp_path / "my-cat.pt")
    passes_the_webui(tmp_path / "my-cat.pt")
    data = torch.load(tmp_path / "my-cat.pt", weights_only=True)  # noqa: TID251 (as peers do)
    vectors = data["string_to_param"].pop("*")
    assert torch.equal(vectors, embedding.vectors["clip_l"])
    assert data == {
        "string_to_token": {"*": 265},
        "string_to_param": {},
        "name": "my-cat",
        "step": 500,
        "sd_checkpoint": "6ce0161689",
        "sd_checkpoint_name": "v1-5-pruned",
    }


def test_only_the_vectors_are_written_however_they_lie_in_memory(make, tmp_path: Path) -> None:
    table = torch.nn.Parameter(torch.randn(1000, 768).half())
    embedding = make().with_vectors({"clip_l": table[5:7]}, 3)
    write(embedding, tmp_path / "a.pt")
    assert (tmp_path / "a.pt").stat().st_size < 10_000
    assert torch.equal(read(tmp_path / "a.pt").vectors["clip_l"], table[5:7].detach().float())


def test_the_optimizers_file_that_the_webui_wrote_is_read() -> None:
    embedding = read(INTEROP / "webui-two.pt")
    assert checksum(embedding) == "f112"
    state = read_optimizer(INTEROP / "webui-two.pt", embedding)
    assert state["param_groups"][0]["lr"] == 0.005
    assert state["state"][0]["exp_avg"].shape == (2, 768)


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_the_optimizers_state_comes_back(optimizer, make, tmp_path: Path) -> None:
    vectors = torch.nn.Parameter(make().vectors["clip_l"].clone())
    trained = optimizer([vectors], lr=0.005)
    vectors.square().sum().backward()
    trained.step()
    embedding = make().with_vectors({"clip_l": vectors}, 1)
    path = tmp_path / "my-cat.pt"
    assert read_optimizer(path, embedding) is None
    write_optimizer(path, embedding, trained.state_dict())
    passes_the_webui(tmp_path / "my-cat.pt.optim")
    state = read_optimizer(path, embedding)
    assert state["param_groups"] == trained.state_dict()["param_groups"]
    for key, value in trained.state_dict()["state"].get(0, {}).items():
        assert value is None or torch.equal(state["state"][0][key], value)
    optimizer([vectors], lr=0.1).load_state_dict(state)
    assert read_optimizer(path, make(num_vectors=4)) is None


def test_an_optimizers_file_and_an_embedding_are_not_mistaken_for_each_other(make, tmp_path: Path) -> None:
    with pytest.raises(EmbeddingFormatError, match=r"a \.optim file is the optimizer of a \.pt file"):
        read(INTEROP / "webui-two.pt.optim")
    write(make(), tmp_path / "my-cat.pt")
    (tmp_path / "my-cat.pt").rename(tmp_path / "a.pt.optim")
    with pytest.raises(EmbeddingFormatError, match=r"a\.pt\.optim cannot be read"):
        read_optimizer(tmp_path / "a.pt", make())


def test_a_state_that_grows_when_it_is_copied_is_refused(make, tmp_path: Path) -> None:
    write(make(), tmp_path / "a.pt")
    once = torch.zeros(3, 768, dtype=torch.float16)  # the optimizer makes float32 of each
    for moments in (dict.fromkeys(map(str, range(5000)), once), {"a": [{"b": once}] * 5000}):
        write_optimizer(tmp_path / "a.pt", make(), {"state": {0: moments}, "param_groups": [{"params": [0]}]})
        with pytest.raises(EmbeddingFormatError, match=r"a\.pt\.optim cannot be read .* bytes, expected at most"):
            read_optimizer(tmp_path / "a.pt", make())
