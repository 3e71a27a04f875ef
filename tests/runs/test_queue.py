"""The queue: runs one after the other, in any order, across restarts, failures and stops."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from puppet import CONFIG, LIMIT_S, Puppet, ended

from ti_trainer.errors import ConfigError, TITrainerError
from ti_trainer.formats import embeddings_dir
from ti_trainer.host import ModelReference
from ti_trainer.preprocess import job as preprocess
from ti_trainer.runs import queue as queue_module
from ti_trainer.runs.job import Job
from ti_trainer.runs.queue import Queue
from ti_trainer.runs.queue_entry import Entry
from ti_trainer.runs.queue_file import CUT_OFF, FILE, MOST, QueueFile
from ti_trainer.runs.quick_job import QuickJob
from ti_trainer.runs.run_folder import Run
from ti_trainer.runs.session import Session

SHORT = replace(CONFIG, max_steps=4, learning_rate="0.01", preview_every=0)


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "POLL_S", 0.01)


@pytest.fixture
def job() -> Job:
    return Job()


@pytest.fixture
def queue(host: Puppet, job: Job) -> Queue:
    for name in ("y-word", "z-word"):
        embeddings_dir.create(host.embeddings_dir, host.model, name, "cat", 1)
    return attached(host, job)


def attached(host: Puppet, job: Job) -> Queue:
    queue = Queue()
    queue.attach(host, job, QuickJob(), preprocess.Job())
    return queue


def short(session: Session, name: str = "x-word", steps: int = 4) -> Session:
    return replace(session, name=name, config=replace(SHORT, max_steps=steps))


def until(wanted: Callable[[], object]) -> None:
    end = time.monotonic() + LIMIT_S
    while not wanted():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


def over(queue: Queue) -> None:
    until(lambda: not queue.snapshot().going and queue._thread is None)


def names(queue: Queue) -> list[str]:
    return [each.name for each in queue.snapshot().entries]


def ids(queue: Queue) -> list[str]:
    return [each.id for each in queue.snapshot().entries]


def trained(host: Puppet) -> list[str]:
    return [run.settings()["name"] for run in reversed(Run.all(host.log_dir))]


def test_of_three_runs_one_fails_and_the_others_are_trained(session: Session, host: Puppet, queue: Queue, job: Job) -> None:
    assert [queue.add(short(session, name)) for name in ("x-word", "y-word", "z-word")] == [1, 2, 3]
    assert (job.status, queue.snapshot().going) == ("idle", False), "nothing starts by itself"
    file = embeddings_dir.find(host.embeddings_dir, "y-word")
    file.rename(file.with_suffix(".away"))
    queue.start()
    over(queue)
    assert trained(host) == ["x-word", "z-word"]
    (failed,) = queue.snapshot().entries
    assert (failed.name, failed.state) == ("y-word", "failed")
    assert "no embedding 'y-word'" in failed.message
    with pytest.raises(ConfigError, match="No run waits"):
        queue.start()
    file.with_suffix(".away").rename(file)
    queue.file.try_again(failed.id)
    queue.start()
    over(queue)
    assert (trained(host), names(queue)) == (["x-word", "z-word", "y-word"], [])


def test_a_run_that_is_added_during_another_starts_when_that_has_ended(
    session: Session, host: Puppet, queue: Queue, job: Job
) -> None:
    host.free.clear()
    job.start(short(session))
    queue.add(short(session, "y-word"))
    assert queue.snapshot().going
    assert job.snapshot().name == "x-word"
    host.free.set()
    over(queue)
    assert trained(host) == ["x-word", "y-word"]
    settings = Run.latest(host.log_dir, "y-word").settings()
    assert settings["train"] == SHORT.to_dict(), "all options as they were added"
    assert settings["images"] == str(session.images.resolve())


@pytest.mark.parametrize("how", ["pause", "stop"])
def test_the_queue_waits_when_a_run_is_paused_or_stopped(
    session: Session, host: Puppet, queue: Queue, job: Job, how: str
) -> None:
    host.at = {2: getattr(job, how)}
    queue.add(short(session))
    queue.add(short(session, "y-word"))
    queue.start()
    until(lambda: queue.snapshot().held)
    now = queue.snapshot()
    assert (now.held, now.waiting, now.going) == ({"pause": "paused", "stop": "stopped"}[how], 1, how == "pause")
    assert trained(host) == ["x-word"]
    host.at = {}
    if how == "pause":
        job.resume()  # and the queue goes on by itself
    else:
        queue.start()
    over(queue)
    assert trained(host) == (["x-word", "y-word"])
    assert Run.latest(host.log_dir, "x-word").step == (4 if how == "pause" else 2)


def test_a_paused_run_can_be_left_behind(session: Session, host: Puppet, queue: Queue, job: Job) -> None:
    host.at = {2: job.pause}
    job.start(short(session))
    ended(job)
    host.at = {}
    queue.add(short(session, "y-word"))
    queue.start()
    over(queue)
    assert trained(host) == ["x-word", "y-word"]


def test_a_run_that_is_stopped_before_its_first_step_waits_again(
    session: Session, host: Puppet, queue: Queue, job: Job
) -> None:
    host.free.clear()
    queue.add(short(session))
    queue.start()
    until(lambda: job.active)
    (entry,) = queue.snapshot().entries
    assert entry.state == "running"
    for change in (queue.file.remove, queue.file.try_again, lambda each: queue.file.move(each, 1)):
        with pytest.raises(ConfigError, match="is being trained"):
            change(entry.id)
    job.stop()
    host.free.set()
    over(queue)
    assert [each.state for each in queue.snapshot().entries] == ["waiting"]
    assert queue.snapshot().held == "stopped"


def test_entries_are_moved_and_removed(session: Session, queue: Queue) -> None:
    for name in ("x-word", "y-word", "z-word"):
        queue.add(short(session, name))
    x, y, z = ids(queue)
    queue.file.move(z, -1)
    assert ids(queue) == [x, z, y]
    queue.file.move(x, 5)
    assert ids(queue) == [z, y, x]
    queue.file.move(z, -1)
    queue.file.remove(y)
    assert ids(queue) == [z, x]
    with pytest.raises(ConfigError, match="not in the queue any more"):
        queue.file.remove(y)


def test_what_can_be_refused_is_refused_when_it_is_added(session: Session, host: Puppet, queue: Queue, job: Job) -> None:
    for wrong, option in (
        (replace(session, images=session.images / "gone"), None),
        (replace(session, name="w-word"), ""),
        (replace(session, config=replace(SHORT, preview_sampler="Heun")), "preview_sampler"),
        (replace(session, config=replace(SHORT, negative=True)), "negative"),
    ):
        with pytest.raises(TITrainerError) as refused:
            queue.add(wrong)
        assert getattr(refused.value, "option", None) == option
    job.start(short(session))
    ended(job)
    with pytest.raises(ConfigError) as refused:
        queue.add(short(session))
    assert refused.value.option == "max_steps"
    assert names(queue) == []
    queue.file.change(lambda _: [Entry(f"{number:08x}", "x-word", "images", {}) for number in range(MOST)])
    with pytest.raises(ConfigError, match=f"at most {MOST}"):
        queue.add(short(session, steps=9))


def test_the_queue_survives_a_restart_and_waits_for_the_user(session: Session, host: Puppet, queue: Queue) -> None:
    queue.add(short(session))
    queue.add(short(session, "y-word"))
    again = attached(host, Job())
    assert ids(again) == ids(queue)
    assert not again.snapshot().going
    time.sleep(0.05)
    assert trained(host) == []
    again.start()
    over(again)
    assert trained(host) == ["x-word", "y-word"]
    assert names(queue) == [], "another process sees what has changed"


def test_an_entry_whose_program_ended_says_so(session: Session, host: Puppet, queue: Queue) -> None:
    queue.add(short(session))
    queue.file.change(lambda entries: [replace(each, state="running") for each in entries])
    (entry,) = attached(host, Job()).snapshot().entries
    assert (entry.state, entry.message) == ("failed", CUT_OFF)


def test_two_programs_do_not_run_one_queue(session: Session, host: Puppet, queue: Queue, job: Job) -> None:
    host.free.clear()
    queue.add(short(session))
    queue.add(short(session, "y-word"))
    queue.start()
    until(lambda: job.active)
    other = attached(host, Job())
    assert [each.state for each in other.snapshot().entries] == ["running", "waiting"], "it is not taken for cut off"
    other.start()
    over(other)
    assert "another process" in other.snapshot().message
    assert [each.state for each in other.snapshot().entries] == ["running", "waiting"]
    host.free.set()
    over(queue)
    assert trained(host) == ["x-word", "y-word"]


def test_programs_that_change_the_file_at_once_lose_nothing(tmp_path: Path) -> None:
    def add(number: int) -> None:
        file = QueueFile(tmp_path / FILE)  # as another program has it
        for each in range(5):
            file.append(Entry(f"{number}x{each}", "x-word", f"images{number}{each}", {}))
            file.move(f"{number}x{each}", -1)
        file.remove(f"{number}x0")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(4)))
    assert len({each.id for each in QueueFile(tmp_path / FILE).read()}) == 16


def test_another_program_holds_the_queue_and_what_it_left_behind_can_be_removed(
    session: Session, host: Puppet, queue: Queue, job: Job
) -> None:
    host.at = {2: lambda: QueueFile(queue.file.path).change(held=True)}
    for name in ("x-word", "y-word"):
        queue.add(short(session, name))
    queue.start()
    over(queue)
    assert (trained(host), names(queue), queue.snapshot().held) == (["x-word"], ["y-word"], "by the user")
    assert queue.add(short(session, "z-word")) == 2
    queue.file.change(lambda entries: [replace(entries[0], state="running"), *entries[1:]])
    assert queue.snapshot().elsewhere == "y-word"
    queue.file.remove(ids(queue)[0])  # no program trains it
    host.at = {}
    queue.start()
    over(queue)
    assert (trained(host), queue.file.held) == (["x-word", "z-word"], False)


def test_a_run_is_continued_from_the_queue(session: Session, host: Puppet, queue: Queue, job: Job) -> None:
    job.start(short(session))
    ended(job)
    run = Run.latest(host.log_dir, "x-word")
    with pytest.raises(ConfigError, match="trained for 4 steps already"):
        queue.add(replace(short(session), resume=run))
    queue.add(replace(short(session, steps=6), resume=run))
    embeddings_dir.create(host.embeddings_dir, host.model, "x-word", "cat", 2, overwrite=True)
    with pytest.raises(ConfigError) as refused:
        queue.add(replace(short(session, steps=6), resume=run))
    assert refused.value.option == "overwrite"
    queue.start()
    over(queue)
    assert "created again or replaced" in queue.snapshot().entries[0].message
    queue.file.remove(ids(queue)[0])
    queue.add(replace(short(session, steps=6), resume=run, overwrite=True))
    queue.start()
    over(queue)
    assert (run.step, names(queue), len(Run.all(host.log_dir))) == (6, [], 1)


def test_options_of_another_version_fail_when_their_turn_comes(session: Session, host: Puppet, queue: Queue) -> None:
    queue.add(short(session))
    queue.add(short(session, "y-word"))

    def other_version(entries: tuple[Entry, ...]) -> list[Entry]:
        return [replace(entries[0], train={**entries[0].train, "future": 1}), entries[1]]

    queue.file.change(other_version)
    queue.start()
    over(queue)
    (failed,) = queue.snapshot().entries
    assert "future" in failed.message
    assert trained(host) == ["y-word"]


def test_closing_starts_nothing_more(session: Session, host: Puppet, queue: Queue, job: Job) -> None:
    host.at = {2: queue.hold}
    queue.add(short(session))
    queue.add(short(session, "y-word"))
    queue.start()
    until(lambda: job.status == "done")
    queue.close()
    assert (queue._thread, trained(host), names(queue)) == (None, ["x-word"], ["y-word"])


def test_an_entry_is_not_trained_with_another_model_than_it_is_meant_for(
    session: Session, host: Puppet, queue: Queue, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = host.chosen_model()
    queue.add(short(session))
    queue.add(short(session, "y-word"))
    queue.file.change(lambda entries: [entries[0], replace(entries[1], model=None)])  # of an earlier version
    monkeypatch.setattr(host, "chosen_model", lambda: replace(tiny, name="other", hash="aa"))
    queue.start()
    over(queue)
    (failed,) = queue.snapshot().entries
    assert (failed.name, failed.state, failed.option, failed.model) == ("x-word", "failed", "model", tiny)
    assert "meant for the model tiny [0123456789], and other [aa] is loaded: load tiny and try again" in failed.message
    assert trained(host) == ["y-word"], "where no model is stored, any is used"
    queue.use_chosen_model(failed.id)
    assert queue.snapshot().entries[0].about_model == "model other [aa]"
    queue.start()
    over(queue)
    assert (trained(host), names(queue)) == (["y-word", "x-word"], [])
    with pytest.raises(ConfigError, match="started with the model tiny, and other is loaded"):
        queue.add(replace(short(session, steps=9), resume=Run.latest(host.log_dir, "x-word")))


def test_a_model_that_is_chosen_while_a_run_waits_is_not_used(
    session: Session, host: Puppet, queue: Queue, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(host.chosen_model(), name="other", hash="aa")
    host.free.clear()
    queue.add(short(session))
    queue.start()
    until(lambda: job.active)
    monkeypatch.setattr(host, "chosen_model", lambda: other)
    host.free.set()
    over(queue)
    assert "other [aa] is loaded" in queue.snapshot().entries[0].message
    assert trained(host) == []


def test_models_are_the_same_as_far_as_both_say(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    known = ModelReference("a", str(tmp_path / "a.safetensors"), "12")
    assert known.is_same(replace(known, name="renamed", path="/elsewhere"))
    assert not known.is_same(replace(known, hash="13"))
    assert known.is_same(replace(known, path=str(tmp_path / "link" / "a.safetensors"), hash=""))
    assert not known.is_same(ModelReference("a", "/elsewhere/a.safetensors"))
    assert known.is_same(ModelReference("a"))


VALID = {"id": "a1", "name": "x-word", "images": "/images", "train": {"max_steps": 3}}


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        (b"", 0),
        (b"{", 0),
        (b"[" * 100_000, 0),
        (bytes(range(256)), 0),
        (b"3", 0),
        (b'{"entries": {}}', 0),
        (json.dumps({"entries": [VALID, 3, {**VALID, "id": "<b>"}, {**VALID, "train": []}]}).encode(), 1),
        (json.dumps({"entries": [{**VALID, "model": each} for each in ("a", {}, {"name": 3}, {"path": "/a"})]}).encode(), 0),
        (json.dumps({"entries": [{**VALID, "state": "gone"}, {**VALID, "name": ""}]}).encode(), 0),
    ],
)
def test_a_damaged_file_is_set_aside_and_its_valid_entries_are_kept(tmp_path: Path, content: bytes, kept: int) -> None:
    path = tmp_path / FILE
    path.write_bytes(content)
    file = QueueFile(path)
    assert len(file.read()) == kept
    aside = path.with_name(f"{FILE}.damaged")
    assert str(aside) in file.warning
    assert aside.read_bytes() == content
    assert len(QueueFile(path).read()) == kept
    path.write_bytes(b"again")
    assert file.read() == ()
    assert aside.with_name(f"{aside.name}-2").read_bytes() == b"again"


def test_a_file_that_cannot_be_read_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.mkdir()
    file = QueueFile(path)
    assert file.read() == ()
    with pytest.raises(ConfigError, match="cannot be read"):
        file.change(lambda entries: [*entries, Entry("a1", "x-word", "/images", {})])
    assert path.is_dir()


@pytest.mark.parametrize("content", [json.dumps({"entries": [VALID, {**VALID, "id": "a2"}]}, indent=2)])
def test_a_file_that_is_cut_off_anywhere_is_kept_aside(tmp_path: Path, content: str) -> None:
    path = tmp_path / FILE
    for length in range(1, len(content) - 1, 7):
        path.write_text(content[:length], encoding="utf-8")
        file = QueueFile(path)
        assert file.read() == ()
        assert "is not JSON" in file.warning
        assert file.append(Entry("b1", "z-word", "/images", {})) == 1
        path.unlink()
    assert len(list(tmp_path.glob("*damaged*"))) > 20


def test_entries_with_one_id_become_two(tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_text(json.dumps({"entries": [VALID, VALID]}), encoding="utf-8")
    file = QueueFile(path)
    first, second = file.read()
    assert first.id != second.id
    assert file.read() == (first, second)
    assert not file.warning
