"""A training step on a pretended CUDA device: right devices and dtypes, no waiting for the device, and memory as estimated.

The device needs a library that is loaded before torch, so the checks run in a process of their own.
"""

from __future__ import annotations

from pathlib import Path

import building
import pytest


@pytest.mark.timeout(900)
def test_steps_and_memory_on_a_pretended_gpu() -> None:
    building.check(*(Path(__file__).with_name(name) for name in ("steps.py", "memory.py", "table.py")))
