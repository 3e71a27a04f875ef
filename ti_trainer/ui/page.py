"""What the page's panels share: the host, its jobs and where values come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ti_trainer.config import presets
from ti_trainer.config.training import TrainConfig
from ti_trainer.errors import BusyError, ConfigError
from ti_trainer.files import entered_path
from ti_trainer.host import Host
from ti_trainer.preprocess import job as preprocess
from ti_trainer.runs import locks
from ti_trainer.runs.datasets import check_folder
from ti_trainer.runs.job import Job
from ti_trainer.runs.live_curve import LiveCurve
from ti_trainer.runs.queue import Queue
from ti_trainer.runs.quick_job import QuickJob
from ti_trainer.workbench.compare import Comparison
from ti_trainer.workbench.compare_job import CompareJob


@dataclass(frozen=True)
class Prefilled:
    """Initial values of the demonstration, so that clicking Train is all it takes."""

    name: str
    init_text: str
    images: Path
    config: TrainConfig


@dataclass(frozen=True)
class Page:
    """What every panel works on.

    `txt2img` maps options of previews to the components of the host's own txt2img tab. `changes` returns the embeddings
    written since the start with their time stamps, from which a WebUI refreshes its cards.
    `size_px` is the model's own size, if it is loaded before the page is built; 0: it is not known.
    """

    host: Host
    job: Job
    prefilled: Prefilled | None = None
    txt2img: Mapping[str, Any] = field(default_factory=dict)
    preprocessing: preprocess.Job = field(default_factory=preprocess.Job)
    quick: QuickJob = field(default_factory=QuickJob)
    changes: Callable[[], Mapping[str, float]] = dict
    comparing: CompareJob = field(default_factory=CompareJob)
    queue: Queue = field(default_factory=Queue)
    curve: LiveCurve = field(default_factory=LiveCurve)
    size_px: int = 0

    def __post_init__(self) -> None:
        """No run is started during a comparison; the queue starts its runs in the page's job."""
        self.job.guard = self.comparing.refuse_if_active
        self.queue.attach(self.host, self.job, self.quick, self.preprocessing)

    def compare(self, work: Comparison) -> None:
        """Start a comparison; BusyError during a run or a quick training."""
        if self.quick.snapshot().active:
            self.quick.refuse_if_busy(self.job, self.preprocessing)
        self.comparing.start(work, self.job)

    def refuse_if_busy(self, what: str) -> None:
        """Raise BusyError during a run or a comparison; waiting for the model would take as long."""
        self.comparing.refuse_if_active()
        if self.job.snapshot().active:
            message = f"Cannot {what} while a training run is active: wait until it is finished, or interrupt it."
            raise BusyError(message)

    @contextmanager
    def changing_embeddings(self, what: str, names: Iterable[str]) -> Iterator[None]:
        """Within it files in the embeddings folder may be changed, those of these embeddings for instance.

        `what` completes "Cannot ...". ConfigError on a public page, and for an embedding that another process trains;
        BusyError during a run.
        """
        self.refuse_visitors(what, self.host.embeddings_dir)
        self.refuse_if_busy(what)
        with self.host.lock(), locks.embeddings_held(self.host.embeddings_dir, names):
            try:
                yield
            finally:
                self.host.embeddings_changed()

    def refuse_visitors(self, what: str, where: Path) -> None:
        """ConfigError on a public page. `what` completes "Cannot ..."; `where` is the folder to do it in instead."""
        if self.is_public:
            message = (
                f"Cannot {what} here, since people other than this computer's user can reach this page. Do it on the "
                f"computer itself, in {where}."
            )
            raise ConfigError(message)

    def overwrite(self, wanted: bool | None) -> bool:
        """Whether existing files may be replaced, as it was entered; ConfigError if visitors of a public page want that."""
        if wanted and self.is_public:
            message = "Nothing can be overwritten on a page that other people can reach: choose a new name."
            raise ConfigError(message)
        return bool(wanted)

    def dataset_dir(self, text: str | None) -> Path:
        """The dataset directory that was entered; ConfigError if it is empty or the visitor may not use it."""
        path = entered_path(text)
        if path == Path():
            message = "Dataset directory: empty; enter the path of a folder with images."
            raise ConfigError(message)
        check_folder(self.host, path)
        return path

    @property
    def is_public(self) -> bool:
        """Whether the page may be used by people other than this computer's user."""
        return self.host.is_public

    @property
    def presets_dir(self) -> Path:
        """The folder of saved presets."""
        return self.host.log_dir / presets.FOLDER
