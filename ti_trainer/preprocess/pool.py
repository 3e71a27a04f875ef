"""A pool of worker processes. If one dies, only its current task fails.

Why processes: threads took 1.1 to 2.5 times as long on two busy cores, at the same CPU time, because Pillow takes the GIL
between the blocks of a file. And a crash in an image decoder would end the whole WebUI. In the process pool of
concurrent.futures one dead worker fails all tasks.
"""

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
from typing import IO, Any, TypeVar, cast

ROOT = Path(__file__).parents[2]
PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); from ti_trainer.preprocess.worker import main; main(sys.argv[2])"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
MOST = 16  # worker processes

T = TypeVar("T")


def cpus() -> int:
    """The number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class _Worker:
    settings: str
    process: subprocess.Popen[str] | None = None
    errors: IO[bytes] = field(default_factory=tempfile.TemporaryFile)

    def __call__(self, task: dict[str, Any]) -> dict[str, Any]:
        """Send a task and wait for its answer. Starts the process if it does not run."""
        process = self.process
        if process is None or process.poll() is not None:
            process = self.process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-c", PROGRAM, str(ROOT), self.settings],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                encoding="utf-8",
                env={**os.environ, **ONE_THREAD},
                start_new_session=True,  # so that Ctrl-C does not interrupt the current task
            )
        stdin, stdout = _pipes(process)
        try:
            stdin.write(json.dumps(task) + "\n")
            stdin.flush()
            answer: dict[str, Any] = json.loads(stdout.readline())
        except (OSError, ValueError):
            return {"failed": f"its worker process ended with exit code {process.wait()}: {self._last_line()}"}
        return answer

    def end(self) -> None:
        """End the process after its current task."""
        if self.process is not None:
            stdin, stdout = _pipes(self.process)
            with suppress(OSError):  # the process ended before it read everything
                stdin.close()
            self.process.wait()
            stdout.close()
        self.errors.close()

    def _last_line(self) -> str:
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "no error message (out of memory?)"


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    """Stdin and stdout, which are both pipes."""
    return cast("IO[str]", process.stdin), cast("IO[str]", process.stdout)


def run_tasks(
    tasks: Iterable[tuple[T, dict[str, Any]]], settings: str, should_stop: Callable[[], bool], workers: int | None = None
) -> Iterator[tuple[T, dict[str, Any]]]:
    """Run tasks in worker processes, and yield the key and answer of each as it is done.

    When stopped, tasks that have begun are finished. `workers` is the number of CPUs by default. An answer with "failed" has
    the reason.
    """
    count = workers or min(MOST, cpus())
    idle: SimpleQueue[_Worker] = SimpleQueue()
    all_workers = [_Worker(settings) for _ in range(count)]
    for worker in all_workers:
        idle.put(worker)

    def run_one(task: dict[str, Any]) -> dict[str, Any]:
        worker = idle.get()
        try:
            return worker(task)
        finally:
            idle.put(worker)

    waiting = iter(tasks)
    under_way: dict[Future[dict[str, Any]], T] = {}
    with ThreadPoolExecutor(count) as threads:
        try:
            while True:
                while len(under_way) < 2 * count and not should_stop():
                    if (following := next(waiting, None)) is None:
                        break
                    key, task = following
                    under_way[threads.submit(run_one, task)] = key
                if should_stop():
                    _cancel_waiting(under_way)
                if not under_way:
                    return
                done, _ = wait(under_way, timeout=1, return_when=FIRST_COMPLETED)
                for each in done:
                    yield under_way.pop(each), each.result()
        finally:
            _cancel_waiting(under_way)
            wait(under_way)
            for worker in all_workers:
                worker.end()


def _cancel_waiting(under_way: dict[Future[dict[str, Any]], T]) -> None:
    """Cancel tasks that have not begun."""
    for each in [each for each in under_way if each.cancel()]:
        del under_way[each]
