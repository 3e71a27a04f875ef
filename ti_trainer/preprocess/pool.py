"""Worker processes and the tasks they share; one that dies takes down only its task. Knows nothing of images."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any, TypeVar

ROOT = Path(__file__).parents[2]
PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); from ti_trainer.preprocess.worker import main; main(sys.argv[2])"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
MOST = 16

T = TypeVar("T")


def cpus() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class _Worker:
    settings: str
    process: subprocess.Popen | None = None
    errors: IO[bytes] = field(default_factory=tempfile.TemporaryFile)

    def __call__(self, task: dict[str, Any]) -> dict[str, Any]:
        """Hand the task over and wait for its answer."""
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-c", PROGRAM, str(ROOT), self.settings],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                encoding="utf-8",
                env={**os.environ, **ONE_THREAD},
                start_new_session=True,  # Ctrl-C is for who started us: a task at hand is finished
            )
        try:
            self.process.stdin.write(json.dumps(task) + "\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())
        except (OSError, ValueError):
            return {"failed": f"the process that made it ended with exit code {self.process.wait()}: {self._last_words()}"}

    def end(self) -> None:
        """After the task at hand."""
        if self.process is not None:
            with suppress(OSError):  # it ended before it read what was left
                self.process.stdin.close()
            self.process.wait()
            self.process.stdout.close()
        self.errors.close()

    def _last_words(self) -> str:
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing (out of memory?)"


def work_off(
    tasks: Iterable[tuple[T, dict[str, Any]]], settings: str, should_stop: Callable[[], bool], workers: int | None = None
) -> Iterator[tuple[T, dict[str, Any]]]:
    """Give tasks to workers and yield each one's key and answer as it is done; when stopped, those at hand still.

    `workers` are one for each CPU if not given. An answer with "failed" says why.
    """
    count = workers or min(MOST, cpus())
    idle: SimpleQueue[_Worker] = SimpleQueue()
    all_workers = [_Worker(settings) for _ in range(count)]
    for each in all_workers:
        idle.put(each)

    def done_by_one(task: dict[str, Any]) -> dict[str, Any]:
        worker = idle.get()
        try:
            return worker(task)
        finally:
            idle.put(worker)

    waiting, under_way = iter(tasks), {}
    with ThreadPoolExecutor(count) as threads:
        try:
            while True:
                while len(under_way) < 2 * count and not should_stop():
                    key, task = next(waiting, (None, None))
                    if task is None:
                        break
                    under_way[threads.submit(done_by_one, task)] = key
                if should_stop():
                    _call_off(under_way)
                if not under_way:
                    return
                done, _ = wait(under_way, timeout=1, return_when=FIRST_COMPLETED)
                for each in done:
                    yield under_way.pop(each), each.result()
        finally:
            _call_off(under_way)
            wait(under_way)
            for each in all_workers:
                each.end()


def _call_off(under_way: dict[Future, Any]) -> None:
    """Those that nobody has begun."""
    for each in [each for each in under_way if each.cancel()]:
        del under_way[each]
