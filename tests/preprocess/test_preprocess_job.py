"""The one preprocessing that a page watches."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from PIL import Image

from ti_trainer.config.preprocessing import PreprocessConfig
from ti_trainer.errors import ConfigError, DatasetError
from ti_trainer.preprocess.job import Job
from ti_trainer.preprocess.runner import Preprocessing
from ti_trainer.preprocess.summary import Summary


@pytest.fixture
def work(tmp_path: Path) -> Preprocessing:
    (tmp_path / "photos").mkdir()
    for number in range(3):
        Image.new("RGB", (80, 80)).save(tmp_path / "photos" / f"{number}.png")
    return Preprocessing(tmp_path / "photos", tmp_path / "made", PreprocessConfig(width=64, height=64))


class Held(Preprocessing):
    """Waits in the middle, until it is let go or stopped."""

    go_on = threading.Event()

    def run(self, progress, should_stop):
        progress(1, 4)
        progress(2, 4)
        while not self.go_on.wait(0.01) and not should_stop():
            pass
        return Summary(sources=2, stopped=should_stop())


def held(work: Preprocessing) -> Preprocessing:
    Held.go_on.clear()
    return Held(work.source, work.destination, work.config)


def until(job: Job, done: int) -> None:
    for _ in range(500):
        if job.snapshot().done == done:
            return
        threading.Event().wait(0.01)
    raise AssertionError(job.snapshot())


def test_it_works_in_the_background_and_tells_its_end(work: Preprocessing) -> None:
    job = Job()
    job.start(work)
    job.wait(60)
    now = job.snapshot()
    assert (now.status, now.done, now.total, now.active) == ("done", 3, 3, False)
    assert now.summary.sources == 3
    assert now.work is work


def test_it_says_how_far_it_is_and_can_be_stopped(work: Preprocessing) -> None:
    job = Job()
    job.start(held(work))
    until(job, 2)
    assert job.snapshot().status == "working"
    assert job.snapshot().seconds_left > 0
    with pytest.raises(ConfigError, match="interrupt"):
        job.start(work)
    job.stop()
    job.wait(60)
    assert job.snapshot().status == "stopped"
    job.start(work)
    job.wait(60)
    assert job.snapshot().status == "done"


def test_what_cannot_be_is_refused_at_once(work: Preprocessing) -> None:
    with pytest.raises(DatasetError, match="does not exist"):
        Job().start(Preprocessing(work.source / "nowhere", work.destination, work.config))


def test_a_failure_is_told(work: Preprocessing) -> None:
    class Broken(Preprocessing):
        def run(self, progress, should_stop):
            raise ValueError("whatever")

    job = Job()
    job.start(Broken(work.source, work.destination, work.config))
    job.wait(60)
    assert job.snapshot().status == "failed"
    assert "ValueError: whatever" in job.snapshot().message
