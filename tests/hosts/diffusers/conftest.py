"""The embedded model, loaded once, and its weights as a single-file checkpoint."""

from __future__ import annotations

from pathlib import Path

import ldm_export
import pytest
from safetensors.torch import save_file

from ti_trainer import tiny_model
from ti_trainer.hosts.diffusers.loading import load
from ti_trainer.hosts.diffusers.model import DiffusersModel


@pytest.fixture(scope="session")
def model() -> DiffusersModel:
    return load("embedded", "cpu")


@pytest.fixture(scope="session")
def single_file(model: DiffusersModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints") / "tiny sd.safetensors"
    save_file({key: value.contiguous() for key, value in ldm_export.checkpoint(model).items()}, path)
    ldm_export.describe(model, path, tiny_model.MODEL / "text_encoder")
    return path
