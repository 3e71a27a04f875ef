"""The WebUI's adapter on a pretended CUDA device, over real `ldm` modules: devices, dtypes, no waiting for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent


@pytest.mark.timeout(900)
def test_steps_in_half_precision_under_autocast(tmp_path: Path, ldm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER.parents[1] / "fake_cuda")
    import building

    building.check([FOLDER / "steps_on_fake_cuda.py"], tmp_path)
