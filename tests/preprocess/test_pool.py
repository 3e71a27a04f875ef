"""Workers: each task is answered once, one that dies takes only its task with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from ti_trainer.config.preprocessing import PreprocessConfig
from ti_trainer.preprocess import pool

SETTINGS = json.dumps({"config": PreprocessConfig(width=64, height=64).to_dict(), "face_models": []})

SLEEPY = """import sys, time; sys.path.insert(0, sys.argv[1])
from ti_trainer.preprocess import worker
work = worker.work
worker.work = lambda task, *more: time.sleep(99) if task["stem"] == "stuck" else work(task, *more)
worker.main(sys.argv[2])"""


def tasks(folder: Path, count: int) -> list[tuple[int, dict]]:
    made = []
    (folder / "made").mkdir()
    for number in range(count):
        Image.new("RGB", (80, 80)).save(folder / f"{number}.bmp")
        path = str(folder / f"{number}.bmp")
        made.append(
            (
                number,
                {"path": path, "folder": str(folder / "made"), "stem": str(number), "keep": [], "mine": {}, "mask": None},
            )
        )
    return made


def never() -> bool:
    return False


@pytest.mark.parametrize("workers", [1, 3])
def test_every_task_is_answered_once(tmp_path: Path, workers: int) -> None:
    answers = dict(pool.run_tasks(tasks(tmp_path, 7), SETTINGS, never, workers))
    assert {key: list(answer["written"]) for key, answer in answers.items()} == {key: [f"{key}.png"] for key in range(7)}


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_a_worker_that_is_killed_takes_only_its_task_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[subprocess.Popen] = []

    def popen(*given: object, **named: object) -> subprocess.Popen:
        begun.append(Popen(*given, **named))
        return begun[-1]

    Popen = subprocess.Popen
    monkeypatch.setattr(pool.subprocess, "Popen", popen)
    monkeypatch.setattr(pool, "PROGRAM", SLEEPY)
    stuck = (
        "stuck",
        {"path": "stuck.png", "folder": str(tmp_path / "made"), "stem": "stuck", "keep": [], "mine": {}, "mask": None},
    )
    answers, killed = {}, False
    work = pool.run_tasks([stuck, *tasks(tmp_path, 4)], SETTINGS, never, 2)
    for key, answer in work:
        answers[key] = answer
        if len(answers) == 4 and not killed:
            for each in begun:
                each.kill()
            killed = True
    assert killed
    assert "ended with exit code -9" in answers["stuck"]["failed"]
    assert [list(answers[number]["written"]) for number in range(4)] == [[f"{number}.png"] for number in range(4)]


def test_a_worker_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "PROGRAM", "raise SystemExit('no such thing')")
    [(_, answer)] = pool.run_tasks(tasks(tmp_path, 1), SETTINGS, never, 1)
    assert "exit code 1: no such thing" in answer["failed"]


def test_workers_load_no_torch_and_no_gradio() -> None:
    program = (
        "import sys, ti_trainer.preprocess.worker; print({'torch', 'gradio', 'transformers', 'cv2'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=pool.ROOT)
    assert done.stdout.strip() == "set()", done.stderr
