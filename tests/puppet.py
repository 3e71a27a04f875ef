"""A host whose runs can be held up and interfered with at chosen steps, and what tests of jobs ask about them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from fakes import TinyHost

from ti_trainer.config.training import TrainConfig
from ti_trainer.formats import embeddings_dir
from ti_trainer.runs.job import Job, Snapshot
from ti_trainer.runs.session import Session

CONFIG = TrainConfig(
    max_steps=10, batch_size=2, gradient_accumulation_steps=2, do_not_resize=True, latent_sampling="random",
    learning_rate="0.01:3, 0.002", shuffle_tags=True, tag_dropout=0.3, preview_every=5, save_every=0, csv_every=1,
)  # fmt: skip
LIMIT_S = 240  # for what takes milliseconds on a machine that has nothing else to do


@dataclass
class Puppet(TinyHost):
    """Does something at chosen steps, and may keep others waiting for their turn."""

    at: dict[int, Callable[[], object]] = field(default_factory=dict)
    free: threading.Event = field(default_factory=threading.Event)
    asked_for_turn: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.free.set()
        embeddings_dir.create(self.embeddings_dir, self.model, "x-word", "red cat", 2)

    @contextmanager
    def lock(self) -> Iterator[Puppet]:
        self.asked_for_turn.set()
        assert self.free.wait(LIMIT_S)
        yield self

    def progress(self, done: int, total: int, text: str) -> None:
        super().progress(done, total, text)
        self.at.get(done, lambda: None)()


def ended(job: Job) -> Snapshot:
    job.wait(LIMIT_S)
    now = job.snapshot()
    assert not now.active, now
    return now


def finished(session: Session) -> Snapshot:
    job = Job()
    job.start(session)
    return ended(job)


def vectors(host: TinyHost) -> torch.Tensor:
    return embeddings_dir.load(host.embeddings_dir, "x-word")[0].vectors["clip_l"]
