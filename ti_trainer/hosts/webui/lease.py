"""The lease of the WebUI's model: its queue, its progress display and its random state. Imported only inside the WebUI."""

from __future__ import annotations

import html
import itertools
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from modules import progress, shared
from modules.call_queue import queue_lock
from PIL import Image

_numbers = itertools.count(1)
_holders: list[int] = []  # the thread that holds the queue for us, if one does


@dataclass(frozen=True)
class WebuiLease:
    """A place at the head of the WebUI's queue; `task` is its id in the progress API."""

    task: str

    def interrupted(self) -> bool:
        """Whether Interrupt was pressed, or Stop after the current image."""
        return shared.state.interrupted or shared.state.stopping_generation

    def progress(self, done: int, total: int, text: str) -> None:
        """Update the progress bar. The WebUI shows the text as HTML, and a text of one line in the bar too."""
        shared.state.job_no, shared.state.job_count = done, max(1, total)
        shared.state.textinfo = html.escape(text, quote=False)

    def show(self, image: Image.Image) -> None:
        """Show an image as the live preview."""
        shared.state.assign_current_image(image)


def is_held_here() -> bool:
    """Whether this thread holds a lease. The queue's lock is not reentrant."""
    return threading.get_ident() in _holders


@contextmanager
def acquired() -> Iterator[WebuiLease]:
    """Wait in the queue and hold it. Nothing within may acquire it again, as changing the checkpoint or the API would."""
    lease = WebuiLease(f"task(ti-trainer-{next(_numbers)})")
    progress.add_task_to_queue(lease.task)
    try:
        with queue_lock, rng_kept():
            shared.state.begin(job=lease.task)
            shared.state.sampling_steps = 0
            progress.start_task(lease.task)
            _holders.append(threading.get_ident())
            try:
                yield lease
            finally:
                _holders.clear()
                shared.state.end()
                shared.state.skipped = shared.state.interrupted = shared.state.stopping_generation = False
    finally:
        progress.pending_tasks.pop(lease.task, None)
        progress.finish_task(lease.task)


@contextmanager
def rng_kept() -> Iterator[None]:
    """Restore the states of the global random number generators afterwards."""
    before = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_initialized() else []):
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


@contextmanager
def state_kept() -> Iterator[None]:
    """Restore the progress state afterwards: generating counts its own jobs and steps. An interrupt is kept in any case."""
    names = ("job", "job_no", "job_count", "job_timestamp", "processing_has_refined_job_count", "textinfo")
    steps = ("sampling_step", "sampling_steps", "current_latent", "current_image_sampling_step")
    before = {name: getattr(shared.state, name) for name in (*names, *steps)}
    interrupted = shared.state.interrupted, shared.state.stopping_generation
    shared.state.interrupted = shared.state.stopping_generation = shared.state.skipped = False
    try:
        yield
    finally:
        shared.state.interrupted |= interrupted[0]
        shared.state.stopping_generation |= interrupted[1]
        shared.state.skipped = False
        for name, value in before.items():
            setattr(shared.state, name, value)
