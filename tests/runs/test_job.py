"""The training in a thread: started once, watched and asked from anywhere."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from puppet import CONFIG, LIMIT_S, Puppet, ended, finished, vectors

from ti_trainer import formats
from ti_trainer.errors import ConfigError, DatasetError, ModelError, TITrainerError
from ti_trainer.runs import bin, step_progress
from ti_trainer.runs import job as job_module
from ti_trainer.runs.job import Job, Snapshot
from ti_trainer.runs.run_folder import Run
from ti_trainer.runs.session import Session


def test_a_job_goes_from_idle_to_done_and_says_all_of_it(session: Session, host: Puppet) -> None:
    job = Job()
    assert (job.snapshot(), job.snapshot().active) == (Snapshot(), False)
    before = vectors(host)
    job.start(session)
    now = ended(job)
    assert (now.status, now.name, now.message, now.step, now.max_steps) == ("done", "x-word", "", 10, 10)
    assert now.loaded == (5, 5)
    rows = now.run.losses()
    assert [step for step, _ in now.loss] == [row["step"] for row in rows] == list(range(1, 11))
    assert [loss for _, loss in now.loss] == pytest.approx([row["loss"] for row in rows], abs=1e-6)
    assert now.rates == tuple((step, 0.01 if step <= 3 else 0.002) for step in range(1, 11))
    assert now.epoch == 8
    assert [(step, path.name) for step, path in now.previews] == [(step, f"x-word-{step}.png") for step in (0, 5, 10)]
    assert now.result.run == now.run == Run.latest(host.log_dir, "x-word")
    assert torch.equal(now.result.embedding.vectors["clip_l"], vectors(host))
    assert not torch.equal(before, vectors(host))
    assert now.steps_per_second > 0
    assert now.seconds_left == 0


def test_a_watcher_sees_each_step_with_speed_and_time_left(session: Session, host: Puppet, monkeypatch: pytest.MonkeyPatch):
    job, seen, clock = Job(), [], iter(range(100, 200, 2))  # two seconds a step
    monkeypatch.setattr(step_progress, "READ_EVERY_S", 0)
    monkeypatch.setattr(step_progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    host.at = {step: lambda: seen.append(job.snapshot()) for step in range(1, 11)}
    job.start(replace(session, config=replace(CONFIG, evaluate_every=5)))
    ended(job)
    assert [now.step for now in seen] == list(range(1, 11))
    assert {now.status for now in seen} == {"training"}
    assert all(now.active and "x-word" in now.prompt for now in seen)
    assert [len(now.loss) for now in seen] == list(range(1, 11))
    assert [now.epoch for now in seen] == [4 * step // 5 for step in range(1, 11)]
    assert (seen[0].steps_per_second, seen[0].seconds_left) == (0, None)
    assert [now.steps_per_second for now in seen[1:]] == [0.5] * 9
    assert seen[3].seconds_left == 12
    assert [step for step, _ in seen[6].validation] == [0, 5]
    assert [step for step, _ in job.snapshot().validation] == [0, 5, 10]


def test_another_start_is_refused_while_a_run_is_active(session: Session, host: Puppet) -> None:
    host.free.clear()
    job = Job()
    job.start(session)
    with pytest.raises(ConfigError, match="'x-word' is being trained: stop it first"):
        job.start(session)
    with pytest.raises(ConfigError):
        job.resume()
    host.free.set()
    assert ended(job).status == "done"


def test_a_run_in_the_bin_is_not_resumed(session: Session) -> None:
    job = Job()
    job.start(session)
    run = ended(job).run
    assert run is not None
    bin.remove(run, session.host.log_dir)
    with pytest.raises(ConfigError, match="If it is in the bin, restore it"):
        job.resume()


def test_of_two_starts_at_the_same_time_one_wins(session: Session, host: Puppet, monkeypatch: pytest.MonkeyPatch) -> None:
    host.free.clear()
    job, both, refused = Job(), threading.Barrier(2, timeout=LIMIT_S), []
    check = Session.check

    def checked_together(each: Session) -> None:
        check(each)
        both.wait()  # none of them has begun when either is checked

    monkeypatch.setattr(Session, "check", checked_together)

    def start() -> None:
        try:
            job.start(session)
        except ConfigError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    assert len(refused) == 1
    assert "is being trained" in refused[0]
    host.free.set()
    assert ended(job).status == "done"
    assert len(Run.all(host.log_dir)) == 1


def test_copies_and_previews_come_at_the_next_step_when_asked_for(session: Session, host: Puppet) -> None:
    job = Job()
    host.at = {4: job.save_copy, 7: job.draw_preview}
    job.start(replace(session, config=replace(CONFIG, preview_every=0)))
    now = ended(job)
    assert [(step, path.name) for step, path in now.run.copies()] == [
        (4, "x-word-4.safetensors"),
        (10, "x-word-10.safetensors"),
    ]
    assert formats.read(now.run.copies()[0][1]).step == 4
    assert [(step, path.name) for step, path in now.previews] == [(7, "x-word-7.png")]
    with Image.open(now.previews[0][1]) as image:
        assert image.size == (16, 16)
    assert host.shown == 1


def refusals(session: Session, tmp_path: Path) -> dict[str, tuple[Session, type[TITrainerError], str]]:
    nameless = tmp_path / "nameless.txt"
    nameless.write_text("a photo of [filewords]")

    def config(**options: object) -> Session:
        return replace(session, config=replace(CONFIG, **options))

    return {
        "no folder": (replace(session, images=tmp_path / "no"), DatasetError, "does not exist"),
        "no [name]": (config(template=str(nameless)), ConfigError, r"without \[name\]"),
        "sampler": (config(preview_sampler="Heun"), ConfigError, "'Heun'.*Euler, DDIM"),
        "no embedding": (replace(session, name="y-word"), ConfigError, "no embedding 'y-word'"),
        "forbidden": (replace(session, images=tmp_path / "forbidden"), ConfigError, "not for the page"),
        "no model": (config(), ModelError, "no model"),
        "trained": (config(), ConfigError, "trained for 10 steps already"),
    }


@pytest.mark.parametrize("what", ["no folder", "no [name]", "sampler", "no embedding", "forbidden", "no model", "trained"])
def test_what_cannot_be_is_refused_before_anything_starts(
    session: Session, host: Puppet, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if what == "trained":
        finished(session)
    if what == "no model":
        monkeypatch.setattr(host, "open_model", lambda *_: (_ for _ in ()).throw(ModelError("no model")))
    monkeypatch.setattr(job_module, "Thread", None)  # a thread would be an error of another kind
    refused, kind, words = refusals(session, tmp_path)[what]
    job = Job()
    with pytest.raises(kind, match=words):
        job.start(refused)
    assert job.snapshot() == Snapshot()


def test_snapshots_never_fail_while_all_is_written(
    session: Session, host: Puppet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_progress, "READ_EVERY_S", 0)
    busy = replace(
        CONFIG, max_steps=10, learning_rate="0.01", preview_every=1, save_every=1, evaluate_every=1, state_every=1
    )
    job, over, errors, steps = Job(), threading.Event(), [], []

    def hammer() -> None:
        try:
            while not over.is_set():
                now = job.snapshot()
                steps.append((now.step, len(now.loss), len(now.previews), len(now.validation)))
        except Exception as error:
            errors.append(error)

    watching = [threading.Thread(target=hammer) for _ in range(2)]
    for thread in watching:
        thread.start()
    job.start(replace(session, config=busy))
    now = ended(job)
    over.set()
    for thread in watching:
        thread.join(LIMIT_S)
    assert not errors
    assert now.status == "done"
    assert len(set(steps)) > 5  # it was seen on its way
    assert len(now.previews) == len(now.validation) == 11


def test_a_run_whose_folder_was_removed_can_still_be_looked_at(session: Session, host: Puppet) -> None:
    job = Job()
    job.start(session)
    now = ended(job)
    now.run.path.rename(now.run.path.with_name("elsewhere"))
    assert (job.snapshot().status, job.snapshot().previews) == ("done", ())


def test_the_preview_after_training_is_that_of_the_result() -> None:
    previews = [(step, Path(f"{step}.png")) for step in (0, 100, 350, 400)]
    result = SimpleNamespace(embedding=SimpleNamespace(step=350))
    now = Snapshot("done", step=400, previews=previews)
    assert now.before_after == (previews[0], previews[3])
    assert replace(now, result=result).before_after == (previews[0], previews[2])
    assert replace(now, previews=previews[:1]).before_after == ()
