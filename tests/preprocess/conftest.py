"""Source images are processed in this process: tests that need worker processes ask for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ti_trainer.config.preprocessing import PreprocessConfig
from ti_trainer.preprocess import faces, runner, worker


@pytest.fixture
def worker_processes() -> None:
    """Process in worker processes, as outside of tests; to start them takes most of a second."""


@pytest.fixture(autouse=True)
def _in_this_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "worker_processes" not in request.fixturenames:
        monkeypatch.setattr(runner, "run_tasks", _run_tasks)


def _run_tasks(
    tasks: Iterable[tuple[Any, dict[str, Any]]], settings: str, should_stop: Callable[[], bool]
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """As `pool.run_tasks`, with the same JSON in both directions."""
    given = json.loads(settings)
    config, finder = PreprocessConfig(**given["config"]), None
    if config.resize == "focal":
        finder, _ = faces.load([Path(each) for each in given["face_models"]])
    for key, task in tasks:
        if should_stop():
            return
        yield key, json.loads(json.dumps(worker.work(json.loads(json.dumps(task)), config, finder)))
