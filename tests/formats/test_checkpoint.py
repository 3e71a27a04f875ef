"""A .ckpt is read without running anything in it."""

from __future__ import annotations

import collections
import os
from pathlib import Path

import numpy
import pytest
import torch

from ti_trainer.errors import ModelError
from ti_trainer.formats import read_checkpoint


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_of_a_checkpoint_are_read(zipped: bool, tmp_path: Path) -> None:
    weights = collections.OrderedDict((f"model.{i}.weight", torch.randn(3, 2, dtype=torch.float16)) for i in range(2000))
    weights["model.0.transposed"] = torch.arange(6).reshape(2, 3).T
    weights["model_ema.num_updates"] = torch.tensor(5, dtype=torch.int32)
    for data in (weights, {"state_dict": weights, "epoch": 3, "callbacks": {"a": [1.5, None, True]}}):
        torch.save(data, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)
        read = read_checkpoint(tmp_path / "a.ckpt")
        assert list(read) == list(weights)
        assert all(torch.equal(read[key], weights[key]) for key in weights)


def test_what_lightning_leaves_beside_the_weights_is_passed_over(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(2)}, "best": numpy.float64(0.5)}, tmp_path / "a.ckpt")
    assert read_checkpoint(tmp_path / "a.ckpt")["a"].tolist() == [1, 1]


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("marker",)


def test_malicious_and_broken_checkpoints_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": {"a": torch.ones(2)}, "callbacks": Malicious()}, path)
    with pytest.raises(ModelError, match=r"a\.ckpt cannot be read: it asks to run 'posix\.mkdir'"):
        read_checkpoint(path)
    assert not (tmp_path / "marker").exists()
    for content in (b"", b"PK\x03\x04", b"some text"):
        path.write_bytes(content)
        with pytest.raises(ModelError, match="cannot be read"):
            read_checkpoint(path)
    with pytest.raises(ModelError, match="No such file"):
        read_checkpoint(tmp_path / "b.ckpt")


@pytest.mark.parametrize("data", [5, None, "text", [torch.ones(2)], {}])
def test_pickles_without_weights_are_named(data: object, tmp_path: Path) -> None:
    torch.save(data, tmp_path / "a.ckpt")
    with pytest.raises(ModelError, match=r"a\.ckpt is a file without weights\. Choose a checkpoint"):
        read_checkpoint(tmp_path / "a.ckpt")
