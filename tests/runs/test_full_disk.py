"""A disk that is full in the middle of a run: it says so, and what was kept before stays."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from puppet import CONFIG, Puppet, ended, vectors

from ti_trainer import formats
from ti_trainer.errors import TrainingError
from ti_trainer.files import described, write_bytes
from ti_trainer.runs.job import Job
from ti_trainer.runs.run_folder import Run
from ti_trainer.runs.session import Session
from ti_trainer.runs.tables import append_row

resource = pytest.importorskip("resource", reason="Windows has no limit on a file's size")
FULL = replace(CONFIG, state_every=1, csv_every=1, preview_every=1, save_every=1)


@pytest.fixture
def room() -> Callable[[int], None]:
    """Says how long a file may become; the system refuses more, as on a full disk."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    return limit  # conftest.py lifts it before pytest writes its report


def temporary(folder: Path) -> list[Path]:
    return list(folder.rglob(".*"))


@pytest.mark.parametrize("size", [0, 100])
def test_a_state_that_cannot_be_saved_ends_the_run_in_words_and_loses_nothing(
    session: Session, host: Puppet, tmp_path: Path, room: Callable[[int], None], size: int
) -> None:
    other = Puppet(tmp_path / "other")
    whole = replace(session, host=other, config=FULL).train()
    before = host.embeddings_dir.joinpath("x-word.safetensors").read_bytes()
    host.at = {5: lambda: room(size)}
    with pytest.raises(TrainingError, match=r"The disk is full .*; free some space: .*state\.safetensors") as told:
        replace(session, config=FULL).train()
    room(resource.RLIM_INFINITY)
    run = Run.latest(host.log_dir, "x-word")
    assert f"is of step {run.step}" in str(told.value)
    assert run.step in (4, 5)
    assert temporary(host.folder) == []
    assert host.embeddings_dir.joinpath("x-word.safetensors").read_bytes() == before
    host.at = {}
    rest = replace(session, config=FULL, resume=run).train()
    assert torch.equal(vectors(host), vectors(other))
    assert rest.run.loss_file.read_bytes() == whole.run.loss_file.read_bytes()


def test_what_is_said_to_be_left_is_there(session: Session, host: Puppet, room: Callable[[int], None]) -> None:
    host.at = {5: lambda: room(100)}
    with pytest.raises(
        TrainingError, match=r"no saved state.*could not be written.*no copy and no saved state.*start it again"
    ) as told:
        replace(session, config=replace(FULL, state_every=100, save_every=0)).train()
    room(resource.RLIM_INFINITY)
    assert "step 0" not in str(told.value)
    (folder,) = host.log_dir.glob("*/*")
    assert not list(folder.rglob("*.safetensors"))


def test_tables_previews_and_copies_are_not_worth_ending_for(
    session: Session, host: Puppet, room: Callable[[int], None]
) -> None:
    warned: list[str] = []
    host.at = {5: lambda: room(64), 8: lambda: room(resource.RLIM_INFINITY)}
    config = replace(FULL, state_every=100, state_every_s=1000, evaluate_every=1)
    result = replace(session, config=config, warn=warned.append).train()
    assert result.reason == "done"
    assert formats.read(result.embedding_file).step == 10
    for what in ("loss table", "preview", "copy of the embedding", "validation loss"):
        assert sum(f"The {what} could not be written; training continues. The disk is full" in said for said in warned) == 1
    rows = result.run.losses()
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 8, 9, 10], "whole lines only"
    assert temporary(host.folder) == []


def test_a_run_that_cannot_begin_leaves_no_folder(session: Session, host: Puppet, room: Callable[[int], None]) -> None:
    room(0)
    with pytest.raises(OSError, match="The disk is full") as told:
        session.train()
    room(resource.RLIM_INFINITY)
    assert told.value.filename.endswith("settings.json")
    assert not list(host.log_dir.glob("*/*"))


def test_half_a_line_is_never_left(tmp_path: Path, room: Callable[[int], None]) -> None:
    table = tmp_path / "table.csv"
    append_row(table, ("step", "loss"), (1, 0.5))
    before = table.read_bytes()
    room(len(before) + 3)
    with pytest.raises(OSError, match="The disk is full") as told:
        append_row(table, ("step", "loss"), (2, 0.25))
    assert told.value.filename == str(table)
    assert table.read_bytes() == before


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_told_once_with_the_file(number: int, tmp_path: Path) -> None:
    first = described(OSError(number, os.strerror(number), "elsewhere"), tmp_path / "a")
    assert (first.errno, first.filename) == (number, str(tmp_path / "a"))
    assert described(first, tmp_path / "b") is first
    other = OSError(errno.EACCES, "no", "there")
    assert described(other, tmp_path / "a") is other


def test_what_could_not_be_written_is_named(tmp_path: Path, room: Callable[[int], None]) -> None:
    path = tmp_path / "file.bin"
    write_bytes(path, b"before")
    room(3)
    with pytest.raises(OSError, match="free some space") as told:
        write_bytes(path, b"longer than there is room")
    assert told.value.filename == str(path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_the_page_says_so_too(session: Session, host: Puppet, room: Callable[[int], None]) -> None:
    job = Job()
    room(0)
    job.start(session)
    now = ended(job)
    room(resource.RLIM_INFINITY)
    assert now.status == "failed"
    assert now.message.startswith("The disk is full (")
