"""What prompts are compared with everywhere is still what the WebUI's own code makes of them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

PROMPTS = Path(__file__).parents[1] / "fixtures" / "prompts"

pytestmark = pytest.mark.webui


@pytest.mark.not_in("Forge", "reForge", reason="the file was made by A1111's own parser")
def test_expected_prompts_are_the_webuis(checkout: Path, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    python = request.config.getoption("--webui-python") or checkout / "venv" / "bin" / "python"
    again = tmp_path / "again.json"
    subprocess.run([python.absolute(), PROMPTS / "make.py", checkout, again], check=True, timeout=300)
    assert again.read_text(encoding="utf-8") == (PROMPTS / "expected.json").read_text(encoding="utf-8")
