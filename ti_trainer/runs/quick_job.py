"""Run a quick training in the background: its stages up to training in a thread, then the run in the page's job."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Event, Lock, Thread

from ti_trainer.errors import BusyError, DatasetError, StoppedError, TITrainerError
from ti_trainer.preprocess import job as preprocess
from ti_trainer.preprocess.runner import Preprocessing
from ti_trainer.preprocess.summary import Summary
from ti_trainer.runs.job import Job, Snapshot, Status
from ti_trainer.runs.quick import QuickTraining
from ti_trainer.runs.quick_stages import STAGES, Stage, StageStatus

log = logging.getLogger(__name__)
POLL_S = 0.2  # between looks at the preprocessing


@dataclass(frozen=True)
class QuickSnapshot:
    """The stages, in their order; the run's own snapshot once it was started."""

    name: str = ""
    active: bool = False
    stages: tuple[Stage, ...] = tuple(map(Stage, STAGES))
    run: Snapshot | None = None

    @property
    def started(self) -> bool:
        """Whether there was a quick training."""
        return bool(self.name)


@dataclass
class QuickJob:
    """Runs one quick training at a time. Every method may be called from any thread."""

    _work: QuickTraining | None = None
    _job: Job | None = None
    _preprocessing: preprocess.Job | None = None
    _stages: Mapping[str, Stage] = field(default_factory=dict)
    _run: Snapshot | None = None
    _preparing: bool = False
    _stop: Event = field(default_factory=Event)
    _thread: Thread | None = None
    _lock: Lock = field(default_factory=Lock)

    def start(
        self,
        work: QuickTraining,
        job: Job,
        preprocessing: preprocess.Job,
        on_end: Callable[[Snapshot], object] = lambda ended: None,
    ) -> None:
        """Start; TITrainerError if it cannot start, BusyError while this, a run or a preprocessing is active.

        `on_end` is called with the run's last snapshot, as `Job.start` does; with one without a run if it was not started.
        """
        self.refuse_if_busy(job, preprocessing)
        work.check()
        with self._lock:
            self.refuse_if_busy(job, preprocessing)
            stop = Event()
            work_of_thread = work, job, preprocessing, stop, on_end
            thread = Thread(target=self._prepare, args=work_of_thread, name="ti-trainer-quick", daemon=True)
            thread.start()  # its first update waits for the lock; if it cannot start, nothing changes
            self._work, self._job, self._preprocessing, self._stop, self._thread = work, job, preprocessing, stop, thread
            self._stages, self._run, self._preparing = {}, None, True

    def stop(self) -> None:
        """Stop after what is in progress; a run saves its embedding."""
        with self._lock:
            job, preprocessing, preparing = self._job, self._preprocessing, self._preparing
            self._stop.set()
        if preparing and preprocessing is not None:
            preprocessing.stop()
        elif job is not None and self.snapshot().active:
            job.stop()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until the stages and the run have ended, each for at most this many seconds."""
        if self._thread is not None:
            self._thread.join(seconds)
        if self._job is not None:
            self._job.wait(seconds)

    @property
    def preparing(self) -> bool:
        """Whether images are being prepared for a run that is started then."""
        return self._preparing

    def snapshot(self) -> QuickSnapshot:
        """The state now."""
        with self._lock:
            work, job, stages, preparing = self._work, self._job, dict(self._stages), self._preparing
            if work is None or job is None:
                return QuickSnapshot()
            now = job.snapshot()
            if self._run is not None and _is_same(self._run, now):
                self._run = now
            run = self._run
        if preparing and (stage := stages.get("dataset")) and stage.status == "running" and self._preprocessing is not None:
            made = self._preprocessing.snapshot()
            stages["dataset"] = replace(stage, progress=(made.done, made.total) if made.active else (0, 0))
        if run is not None:
            stages["training"], stages["result"] = _training(run), _result(run)
        active = preparing or (run is not None and run.active)
        return QuickSnapshot(work.name, active, tuple(stages.get(each, Stage(each)) for each in STAGES), run)

    def refuse_if_busy(self, job: Job, preprocessing: preprocess.Job) -> None:
        """Raise BusyError while this, a run, a preprocessing or something else that uses the model is active."""
        job.guard()
        message = ""
        if self._preparing and self._work is not None:
            message = f"The images of {self._work.name!r} are being prepared: wait until it is trained, or stop it."
        elif (now := job.snapshot()).active:
            message = f"{now.name!r} is being trained: wait until it is finished, or stop it."
        elif preprocessing.snapshot().active:
            message = "Preprocessing is running: wait until it is done, or interrupt it in the Preprocess tab."
        if message:
            raise BusyError(message)

    def _prepare(
        self,
        work: QuickTraining,
        job: Job,
        preprocessing: preprocess.Job,
        stop: Event,
        on_end: Callable[[Snapshot], object],
    ) -> None:
        status: StageStatus = "failed"
        outcome: Status = "failed"
        try:
            job.start(work.prepare(partial(_preprocess, preprocessing, stop), self._report, stop.is_set), on_end)
        except StoppedError as error:
            status, outcome, message = "stopped", "stopped", str(error)
        except BusyError as error:  # another run was started meanwhile
            outcome, message = "idle", str(error)
        except (TITrainerError, OSError) as error:
            message = str(error)
        except Exception as error:  # the page must show any error, and the next start must be possible
            log.exception("Quick training failed:")
            message = f"Unexpected {type(error).__name__}: {error}. See the log for details."
        else:
            with self._lock:
                self._run, self._preparing = job.snapshot(), False
            if stop.is_set():  # in the last moment
                job.stop()
            return
        log.log(logging.INFO if status == "stopped" else logging.ERROR, "Quick training of %s: %s", work.name, message)
        with self._lock:
            self._preparing = False
            last = list(self._stages.values())[-1:] or [Stage("images", "running")]
            name = last[0].name if last[0].status == "running" else list(STAGES)[list(STAGES).index(last[0].name) + 1]
            self._stages = {**self._stages, name: Stage(name, status, message)}
        on_end(Snapshot(outcome, work.name, message))

    def _report(self, stage: Stage) -> None:
        if stage.status == "done":
            log.info("%s: %s", STAGES[stage.name], stage.text)
            for warning in stage.warnings:
                log.warning("%s", warning)
        with self._lock:
            self._stages = {**self._stages, stage.name: stage}


def _preprocess(preprocessing: preprocess.Job, stop: Event, work: Preprocessing) -> Summary:
    """Run the preprocessing in its job, where the page shows it."""
    preprocessing.start(work)
    while preprocessing.snapshot().active:
        preprocessing.wait(POLL_S)
        if stop.is_set():
            preprocessing.stop()
    done = preprocessing.snapshot()
    if done.summary is None:
        raise DatasetError(done.message)
    return done.summary


def _is_same(before: Snapshot, now: Snapshot) -> bool:
    """Whether a snapshot is a later one of the same run."""
    paths: list[Path | None] = [each.run.path if each.run else None for each in (before, now)]
    return before.name == now.name and (paths[0] is None or paths[0] == paths[1])


def _training(run: Snapshot) -> Stage:
    """The stage of training, from the state of the run."""
    warnings = tuple(run.message.splitlines())
    progress = (run.step, run.max_steps)
    if run.status == "failed":
        return Stage("training", "failed", run.message)
    if run.status == "done":
        verdict = run.result.verdict if run.result else ""
        return Stage("training", "done", verdict or f"{run.step} steps.", warnings)
    if run.status == "paused":
        return Stage("training", "stopped", f"Paused at step {run.step} of {run.max_steps}.", warnings, progress)
    if run.status == "stopped":
        text = f"Stopped at step {run.step} of {run.max_steps}." if run.step else "Stopped before the first step."
        return Stage("training", "stopped", text, warnings, progress)
    if run.status == "waiting":
        return Stage("training", "running", "Waiting for the model, which is in use.", warnings)
    if run.status == "loading":
        return Stage("training", "running", "Loading the images.", warnings, run.loaded)
    return Stage("training", "running", f"Step {run.step} of {run.max_steps}.", warnings, progress)


def _result(run: Snapshot) -> Stage:
    """The stage of the result: where the embedding is."""
    if run.active or run.run is None or run.status == "failed":
        return Stage("result")
    where = f" The embedding is {run.result.embedding_file.resolve()}." if run.result else ""
    return Stage("result", "done", f"Write {run.name} in a prompt to use it.{where}")
