"""A hostile file is refused quickly and in little memory, measured in separate processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hostile import DATA, hostile_files

HERE = Path(__file__).parent
FUZZ_S = float(os.environ.get("TI_FUZZ_S", "5"))
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="measures with fork")


def python(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / script), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)


def test_every_hostile_file_is_refused_within_2_s_and_200_mb(tmp_path: Path) -> None:
    for name, content in hostile_files():
        (tmp_path / name).write_bytes(content)
    done = python("hostile.py", *map(str, sorted(tmp_path.iterdir())))
    costs = {each["name"]: each for each in map(json.loads, done.stdout.splitlines())}
    assert set(costs) == {path.name for path in tmp_path.iterdir()}, done.stderr
    assert [each for each in costs.values() if f"{each['name']} cannot be read as an embedding" not in each["said"]] == []
    assert [each for each in costs.values() if each["cpu_s"] > 2 or each["mb"] > 200] == []
    reported = [costs[path.name] for path in DATA.iterdir()]
    assert len(reported) == 2
    assert [each for each in reported if each["cpu_s"] > 0.5 or each["mb"] > 50] == []


def test_damaged_files_cause_no_other_error_and_cost_little() -> None:
    """TI_FUZZ_SEED repeats a run that failed; TI_FUZZ_S makes it longer."""
    seed = os.environ.get("TI_FUZZ_SEED") or str(time.time_ns() % 10**9)
    done = python("fuzzing.py", seed, str(FUZZ_S))
    assert done.returncode == 0, f"TI_FUZZ_SEED={seed}: {done.stderr[-2000:]}"
    assert json.loads(done.stdout)["files"] > 10 * FUZZ_S
