"""An embedding is trained by one process at a time, and one that dies leaves it free."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from puppet import Puppet

from ti_trainer.errors import ConfigError
from ti_trainer.runs import locks
from ti_trainer.runs.job import Job
from ti_trainer.runs.run_folder import Run
from ti_trainer.runs.session import Session

HOLD = """
import json, os, sys
from filelock import FileLock
path = sys.argv[1]
lock = FileLock(path)
lock.acquire()
with open(path + ".json", "w") as file:
    json.dump({"pid": os.getpid(), "host": "elsewhere"}, file)
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def another_holds(lock_file: Path) -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLD, str(lock_file)], stdin=pipe, stdout=pipe, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_an_embedding_that_another_process_trains_is_left_to_it(session: Session, host: Puppet) -> None:
    file = host.embeddings_dir / "x-word.safetensors"
    before = file.read_bytes()
    with another_holds(locks.of_embedding(file)) as other:
        with pytest.raises(ConfigError, match=f"x-word is being trained by another process .{other.pid} on elsewhere"):
            session.train()
        assert not Run.all(host.log_dir)
        assert file.read_bytes() == before
        job = Job()
        job.start(session)
        job.wait()
        assert job.snapshot().status == "failed"
        assert f"process ({other.pid} on elsewhere)" in job.snapshot().message
        other.kill()
        other.wait()
    assert session.train().reason == "done", "the system frees what a process held that is gone"
    left = {path.name for path in host.embeddings_dir.iterdir()}
    assert left == {"x-word.safetensors", "x-word.preview.png"}, "and nothing is left behind"


def test_a_run_that_another_process_goes_on_with_is_left_to_it(session: Session, host: Puppet) -> None:
    host.at = {4: host.interrupt.set}
    run = session.train().run
    host.interrupt.clear()
    session.resume, lines = run, run.loss_file.read_bytes()
    with another_holds(locks.of_run(run.path)), pytest.raises(ConfigError, match=f"The run {run.id} is being trained"):
        session.train()
    assert run.loss_file.read_bytes() == lines
    assert session.train().embedding.step == 10


def test_while_it_is_held_it_says_by_whom(tmp_path: Path) -> None:
    lock_file = tmp_path / ".x-word.lock"
    holder = f"process .{os.getpid()} on {socket.gethostname()}"
    with locks.held(lock_file, "It", print), pytest.raises(ConfigError, match=holder):  # noqa: SIM117
        with locks.held(lock_file, "It", print):
            pass
    assert list(tmp_path.iterdir()) == [lock_file]


def test_where_nothing_can_be_locked_it_is_said_and_no_more(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "file").touch()
    with locks.held(tmp_path / "file" / ".lock", "The embedding w", said.append):
        pass
    assert len(said) == 1
    assert said[0].startswith("The embedding w cannot be locked")


@pytest.mark.parametrize("about", [b"", b"[]", b"{", b'{"pid": "x"}', b"\xff" * 9999])
def test_who_holds_it_may_be_unknown(tmp_path: Path, about: bytes) -> None:
    lock_file = tmp_path / ".x-word.lock"
    with locks.held(lock_file, "It", print):
        lock_file.with_name(".x-word.lock.json").write_bytes(about)
        with pytest.raises(ConfigError, match="unknown"), locks.held(lock_file, "It", print):
            pass
