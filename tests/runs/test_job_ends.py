"""How the training in a thread ends: stopped, paused to go on, failed, interrupted; what is kept each time."""

from __future__ import annotations

import io
import logging
import re
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from puppet import CONFIG, LIMIT_S, Puppet, ended, finished, vectors
from tqdm import tqdm

from ti_trainer.errors import ConfigError
from ti_trainer.formats import embeddings_dir
from ti_trainer.runs import job as job_module
from ti_trainer.runs import session as session_module
from ti_trainer.runs.job import INTERRUPTED, Job, Snapshot
from ti_trainer.runs.run_folder import Run
from ti_trainer.runs.session import Session

STOPPED = "Stopped before the first step: nothing was changed."


def test_stop_keeps_what_was_learned(session: Session, host: Puppet) -> None:
    job = Job()
    host.at = {4: job.stop}
    job.start(session)
    now = ended(job)
    assert (now.status, now.step, now.result.reason) == ("stopped", 4, "interrupted")
    assert embeddings_dir.load(host.embeddings_dir, "x-word")[0].step == now.run.step == 4


@pytest.mark.parametrize("pauses", [(3,), (1, 2, 9), (5, 10)])
def test_pausing_and_going_on_is_as_if_there_had_been_no_pause(
    session: Session, host: Puppet, tmp_path: Path, pauses: tuple[int, ...]
) -> None:
    assert finished(replace(session, host=(other := Puppet(tmp_path / "other")))).status == "done"
    job = Job()
    host.at = dict.fromkeys(pauses, job.pause)
    job.start(session)
    for step in pauses:
        now = ended(job)
        assert (now.status, now.step) == ("paused" if step < 10 else "done", step)
        if step < 10:
            torch.randn(7)  # what others do meanwhile is nothing to it
            job.resume()
    now = ended(job)
    assert now.status == "done"
    assert torch.equal(vectors(host), vectors(other))
    assert [step for step, _ in now.loss] == list(range(1, 11))
    assert len(Run.all(host.log_dir)) == 1
    assert now.run.loss_file.read_bytes() == Run.all(other.log_dir)[0].loss_file.read_bytes()


def test_going_on_twice_and_with_nothing_is_refused(session: Session, host: Puppet) -> None:
    job = Job()
    with pytest.raises(ConfigError, match="no paused run"):
        job.resume()
    host.at = {2: job.pause, 6: job.stop}
    job.start(session)
    assert ended(job).status == "paused"
    host.free.clear()
    job.resume()
    with pytest.raises(ConfigError, match="is being trained"):
        job.resume()
    host.free.set()
    assert (ended(job).status, job.snapshot().step) == ("stopped", 6)
    job.resume()
    assert ended(job).status == "done"
    with pytest.raises(ConfigError, match="trained for 10 steps already"):
        job.resume()
    assert job.snapshot().status == "done"


@pytest.mark.parametrize(("wish", "meanwhile"), [("stop", "stopping"), ("pause", "pausing")])
def test_a_wish_to_end_shows_while_waiting_for_the_turn_and_nothing_begins(
    session: Session, host: Puppet, tmp_path: Path, wish: str, meanwhile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.free.clear()
    job, before = Job(), contents(host)
    job.start(session)
    assert host.asked_for_turn.wait(LIMIT_S)
    assert job.snapshot().status == "waiting"
    with monkeypatch.context() as patched:
        patched.setattr(host, "open_model", None)  # when its turn comes, it does not load a model to end at once
        getattr(job, wish)()
        assert job.snapshot().status == meanwhile
        host.free.set()
        now = ended(job)
    assert (now.status, now.step, now.message, now.run, now.result) == ("stopped", 0, STOPPED, None, None)
    assert contents(host) == before
    with pytest.raises(ConfigError, match="no paused run"):
        job.resume()
    job.start(session)
    assert (ended(job).status, job.snapshot().message) == ("done", "")
    finished(replace(session, host=(other := Puppet(tmp_path / "other"))))
    assert torch.equal(vectors(host), vectors(other))


@pytest.mark.parametrize(
    ("wish", "meanwhile", "at"), [("stop", "stopping", 2), ("pause", "pausing", 2), ("stop", "stopping", 5)]
)
def test_a_wish_to_end_while_images_are_read_ends_it_at_once_and_leaves_nothing(
    session: Session, host: Puppet, wish: str, meanwhile: str, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, before = Job(), contents(host)
    seen = wish_at_image(at, job, wish, host, monkeypatch)
    job.start(session)
    now = ended(job)
    shown = [*(("loading", (number, 5)) for number in range(at - 1)), (meanwhile, (at - 1, 5))]  # loaded before that
    assert [(each.status, each.loaded) for each in seen] == shown, "no other image is read"
    assert (now.status, now.step, now.message, now.run, now.result) == ("stopped", 0, STOPPED, None, None)
    assert contents(host) == before


@pytest.mark.parametrize("when", ["waiting", "reading"])
def test_a_stop_before_a_resumed_run_goes_on_leaves_it_as_it_was(
    session: Session, host: Puppet, tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job()
    host.at = {4: job.pause}
    job.start(session)
    run, before = ended(job).run, contents(host)
    with monkeypatch.context() as patched:
        if when == "reading":
            wish_at_image(2, job, "stop", host, patched)
        else:
            host.free.clear()
        job.resume()
        if when == "waiting":
            job.stop()
            host.free.set()
        now = ended(job)
    assert (now.status, now.step, now.message, now.run, now.result) == ("stopped", 4, STOPPED, run, None)
    assert contents(host) == before
    job.resume()
    now = ended(job)
    assert (now.status, now.run, Run.all(host.log_dir)) == ("done", run, [run])
    finished(replace(session, host=(other := Puppet(tmp_path / "other"))))
    assert torch.equal(vectors(host), vectors(other))
    assert run.loss_file.read_bytes() == Run.all(other.log_dir)[0].loss_file.read_bytes()


@pytest.mark.parametrize("who", ["the page", "the host"])
def test_a_stop_after_the_images_were_read_draws_and_measures_nothing(
    session: Session, host: Puppet, who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, prepared, before = Job(), Session._trainer, vectors(host)

    def stopped_meanwhile(each: Session, *given: object) -> object:
        (job.stop if who == "the page" else host.interrupt.set)()
        return prepared(each, *given)

    monkeypatch.setattr(Session, "_trainer", stopped_meanwhile)
    job.start(replace(session, config=replace(CONFIG, evaluate_every=5)))
    now = ended(job)
    said = "" if who == "the page" else INTERRUPTED
    assert (now.status, now.step, now.message, now.previews, now.validation) == ("stopped", 0, said, [], [])
    assert host.shown == 0
    assert torch.equal(vectors(host), before)


def contents(host: Puppet) -> dict[Path, bytes]:
    """Every file of the host's folders."""
    return {path: path.read_bytes() for path in host.folder.rglob("*") if path.is_file()}


def wish_at_image(at: int, job: Job, wish: str, host: Puppet, monkeypatch: pytest.MonkeyPatch) -> list[Snapshot]:
    """What the job shows at each image that is encoded, after the wish at one of them."""
    seen, encode = [], host.model.encode_images

    def encode_images(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if len(seen) == at - 1:
            getattr(job, wish)()
        seen.append(job.snapshot())
        return encode(pixels)

    monkeypatch.setattr(host.model, "encode_images", encode_images)
    return seen


def test_wishes_are_nothing_to_a_job_that_is_over(session: Session) -> None:
    job = Job()
    for _ in range(2):
        before = job.snapshot().status
        for wish in (job.stop, job.pause, job.save_copy, job.draw_preview):
            wish()
        assert job.snapshot().status == before
        job.start(session if before == "idle" else replace(session, config=replace(CONFIG, max_steps=12)))
        now = ended(job)
        assert now.status == "done"
        assert all(step == now.step for step, _ in now.run.copies()), "no copy but that of the end, if there is one"


def test_a_failure_is_told_and_the_next_start_is_possible(
    session: Session, host: Puppet, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, longer = Job(), replace(session, config=replace(CONFIG, max_steps=20))
    job.start(replace(session, config=replace(CONFIG, learning_rate="1e-30")))
    now = ended(job)
    assert (now.status, now.result) == ("failed", None)
    assert "raise the learning rate. The embedding as trained until then is in" in now.message

    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    with monkeypatch.context() as patched:
        patched.setattr(host.model, "predict", broken)
        job.start(longer)
        assert ended(job).status == "failed"
        assert job.snapshot().message == "Unexpected ZeroDivisionError: a bug. See the log for details."
    job.start(longer)
    assert (ended(job).status, job.snapshot().message, job.snapshot().step) == ("done", "", 20)


def test_a_thread_that_cannot_start_leaves_the_job_as_it_was(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    job = Job()
    with monkeypatch.context() as patched:
        patched.setattr(job_module.Thread, "start", no_more)
        with pytest.raises(RuntimeError):
            job.start(session)
    assert ended(job).status == "idle"
    job.start(session)
    assert ended(job).status == "done"


def test_a_stop_that_comes_as_the_run_ends_leaves_it_ended(
    session: Session, host: Puppet, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, at_the_end, go_on = Job(), threading.Event(), threading.Event()

    def last_thing() -> None:
        at_the_end.set()
        assert go_on.wait(LIMIT_S)

    def slow_replace(now: Snapshot, **changes: object) -> Snapshot:
        if changes.get("status") == "stopping":  # the worker may end before this is put in place, if nothing holds it
            go_on.set()
            job.wait(0.5)
        return replace(now, **changes)

    monkeypatch.setattr(host, "embeddings_changed", last_thing)
    monkeypatch.setattr(session_module.finalize, "plot_losses", lambda run: None)
    job.start(session)
    assert at_the_end.wait(LIMIT_S)
    monkeypatch.setattr(job_module, "replace", slow_replace)
    job.stop()
    assert ended(job).status == "done"


def test_the_hosts_own_interrupt_stops_it(session: Session, host: Puppet) -> None:
    host.at = {4: host.interrupt.set}
    now = finished(session)
    assert (now.status, now.step) == ("stopped", 4)
    assert now.message.endswith(INTERRUPTED)
    host.interrupt.clear()
    job = Job()
    host.at = {6: job.stop}
    job.start(replace(session, resume=now.run))
    assert INTERRUPTED not in ended(job).message, "that was somebody's own wish"


def test_the_console_hears_how_a_run_begins_how_far_it_is_and_how_it_ends(
    session: Session, host: Puppet, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, job_module.__name__)
    drawn = io.StringIO()
    job = Job(bar=partial(tqdm, file=drawn))
    host.at = {4: job.stop}
    for _ in range(2):
        job.start(session if job.snapshot().run is None else replace(session, resume=job.snapshot().run))
        now = ended(job)
    job.start(replace(session, config=replace(CONFIG, max_steps=20, learning_rate="1e-30:20"), resume=now.run))
    assert ended(job).status == "failed"
    file = host.embeddings_dir / "x-word.safetensors"
    begun = f"The run is written to {now.run.path}."
    assert caplog.messages[:4] == [
        f"Training x-word on 5 images, steps 1 to 10. {begun}",
        f"Training x-word: stopped after step 4. The embedding is {file}.",
        f"Training x-word on 5 images, steps 5 to 10. {begun}",
        f"Training x-word: done after step 10. The embedding is {file}.",
    ]
    assert caplog.messages[-1].startswith("Training x-word: failed. ")
    lines = [line.split("\r")[-1] for line in drawn.getvalue().split("\n")]
    for line, step in zip(lines, (4, 10), strict=False):
        assert re.search(rf" {step}/10 .*loss \d\.\d{{4}}, learning rate 0\.0", line), line


def test_a_run_does_not_go_on_with_another_model(session: Session, host: Puppet) -> None:
    job = Job()
    host.at = {3: job.pause}
    job.start(session)
    assert ended(job).status == "paused"
    host.model.name = "another"
    with pytest.raises(ConfigError, match="started with the model tiny, and another is loaded"):
        job.resume()
    del host.model.name
    job.resume()
    assert ended(job).status == "done"
