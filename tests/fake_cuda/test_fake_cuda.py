"""A training step on a pretended CUDA device: right devices and dtypes, no waiting for the device, and memory as estimated.

The device needs a library that is loaded before torch, so the checks run in a process of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import building
import pytest


@pytest.mark.timeout(900)
def test_steps_on_a_pretended_gpu(tmp_path: Path) -> None:
    if obstacle := building.obstacle():
        if os.environ.get("TI_TRAINER_CI") and "compiler" in obstacle:
            pytest.fail(f"{obstacle}: install g++")
        pytest.skip(obstacle)
    files = [str(Path(__file__).with_name(name)) for name in ("steps.py", "memory.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", *files]
    found = subprocess.run(
        command, env=building.environment(building.built(tmp_path)), capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout[-8000:] + found.stderr[-2000:]
