"""The script for a GPU, as far as it can be checked without one: its command lines, its time limits and its result."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import run_all
from run_all import Outcome, Part

from ti_trainer.__main__ import build_parser
from ti_trainer.commands import bench, doctor

COMMANDS = {"bench": bench._check, "doctor": lambda args: None}


def test_every_part_is_a_command_line_that_exists() -> None:
    found = run_all.parts("somewhere")
    assert sum(each.limit_s for each in found) <= run_all.TOTAL_S
    shapes, batches = set(), set()
    for arguments in (each.arguments for part in (found, run_all.parts(dry=True)) for each in part):
        if arguments[:2] != ["-m", "ti_trainer"]:
            assert arguments[0] == "-m" or Path(arguments[0]).is_file()
            continue
        args = build_parser(arguments[2]).parse_args(arguments[2:])
        COMMANDS[arguments[2]](args)
        if args.run is bench.run:
            shapes.add((args.shape, args.size))
            batches.update(args.batch_sizes)
    assert {("sd15", 512), ("sdxl", 1024)} < shapes
    assert batches == {1, 4}
    assert tuple(run_all.SHAPES) == doctor.SHAPES
    assert all((run_all.ROOT / each).exists() for each in run_all.TESTS)


def test_there_is_a_result_whatever_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    row = {
        "batch_size": 1,
        "steps_per_second": {"ours": 10.0, "compiled": 20.0},
        "ours_to": {},
        "ours_beside": {},
        "peak_memory_gib": {},
        "memory": "",
        "milliseconds_by_part": {"text": 1, "unet_forward": 1, "unet_backward": 1, "rest": 1, "step": 4},
        "compile_seconds": 100.0,
    }
    facts = {"model": "m", "size": 64, "device": "d", "precision": "p", "threads": 1, "torch": "2", "date": "", "steps": 30}
    print_json = f"print({json.dumps(json.dumps({**facts, 'rows': [row]}))})"
    sleeping = "import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-c', 'input()'])"
    parts = [
        Part("tests", ["-c", "print('1 failed'); raise SystemExit(1)"], 60),
        Part("bench", ["-c", print_json], 60),
        Part("peaks", ["-c", sleeping.replace("'input()'", "'import time; time.sleep(60)'")], 1),
        Part("late", ["-c", ""], 60),
    ]
    monkeypatch.setattr(run_all, "parts", lambda diffusers, dry: parts)
    run, begun = run_all.run, time.monotonic()

    def interrupted(part: Part, limit_s: float, environment: dict[str, str]) -> Outcome:
        if part.name == "late":
            raise KeyboardInterrupt
        return run(part, limit_s, environment)

    monkeypatch.setattr(run_all, "run", interrupted)
    assert run_all.main(["--dry", "--output", str(tmp_path / "result.txt")]) == 3
    text = (tmp_path / "result.txt").read_text(encoding="utf-8")
    assert text.strip() in capsys.readouterr().out
    assert time.monotonic() - begun < 50
    assert "== tests: exit code 1 (" in text
    assert "1 failed" in text
    assert "compiling pays from 2000 steps on; auto compiles from 4000" in text
    assert "== peaks: ended after 1 s (" in text
    assert "begun" in text
    assert "== late: not run" in text
