"""The embedded model, loaded once, and its weights as a single-file checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ldm_export
import pytest
from safetensors.torch import save_file

from ti_trainer import tiny_model
from ti_trainer.hosts.diffusers import folder, single_file_text
from ti_trainer.hosts.diffusers.library import CLIPTokenizer
from ti_trainer.hosts.diffusers.loading import load
from ti_trainer.hosts.diffusers.model import DiffusersModel


@pytest.fixture(scope="session", autouse=True)
def _equal_tokenizers_are_read_once() -> Iterator[None]:
    """The vocabulary of CLIP takes half a second to parse: files with the same content give the same tokenizer."""
    known: dict[Any, CLIPTokenizer] = {}

    def from_pretrained(place: Path, **options: Any) -> CLIPTokenizer:
        files = [(path.name, hashlib.sha1(path.read_bytes()).digest()) for path in sorted(place.iterdir())]  # noqa: S324
        key = (*files, options.get("pad_token"))
        if key not in known:
            known[key] = CLIPTokenizer.from_pretrained(place, **options)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        for module in (folder, single_file_text):
            patch.setattr(module, "CLIPTokenizer", SimpleNamespace(from_pretrained=from_pretrained))
        yield


@pytest.fixture(scope="session")
def model() -> DiffusersModel:
    return load("embedded", "cpu")


@pytest.fixture(scope="session")
def single_file(model: DiffusersModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints") / "tiny sd.safetensors"
    save_file({key: value.contiguous() for key, value in ldm_export.checkpoint(model).items()}, path)
    ldm_export.describe(model, path, tiny_model.MODEL / "text_encoder")
    return path
