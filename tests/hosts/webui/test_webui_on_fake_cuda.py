"""The WebUI's adapter on a pretended CUDA device, over real `ldm` modules: devices, dtypes, and no waiting for it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


@pytest.mark.skipif(importlib.util.find_spec("ldm") is None, reason="the package ldm is not installed")
@pytest.mark.timeout(900)
def test_steps_in_half_precision_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER.parents[1] / "fake_cuda")
    import building

    building.check(FOLDER / "steps_on_fake_cuda.py")
