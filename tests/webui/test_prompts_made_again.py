"""What prompts are compared with everywhere is still what the WebUI's own code makes of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "fixtures" / "prompts"))
from stored import FILE, same

pytestmark = pytest.mark.webui


@pytest.mark.not_in("Forge", "reForge", reason="the file was made by A1111's own parser")
def test_expected_prompts_are_the_webuis(checkout: Path, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    python = request.config.getoption("--webui-python") or checkout / "venv" / "bin" / "python"
    again = tmp_path / "again.json"
    subprocess.run([python.absolute(), FILE.with_name("make.py"), checkout, again], check=True, timeout=300)
    made, known = (json.loads(each.read_text(encoding="utf-8")) for each in (again, FILE))
    assert [prompt for prompt, _ in made] == [prompt for prompt, _ in known]
    pairs = zip(made, known, strict=True)
    assert [(prompt, found) for (prompt, found), (_, old) in pairs if not agree(found, old)] == []


def agree(found: dict[str, Any], old: dict[str, Any]) -> bool:
    """The same ids, weights and places, and numbers that are equal but for the rounding of another CPU."""
    for engine in ("clip", "open_clip"):
        ours, expected = ({**each, **each.get(engine, {}), "open_clip": None} for each in (found, old))
        numbers = [each.pop("hidden", None) for each in (ours, expected)]
        if ours != expected or (numbers[0] is None) != (numbers[1] is None):
            return False
        if numbers[0] is not None and not same(*numbers, weighted=any(len(runs) > 1 for runs in ours["weights"])):
            return False
    return True
