"""The page: its panels side by side, over a host and the one job that it watches. Runs in the WebUI's tab and standalone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ti_trainer.config import presets
from ti_trainer.config.training import TrainConfig
from ti_trainer.errors import BusyError, ConfigError
from ti_trainer.files import entered_path
from ti_trainer.host import Host
from ti_trainer.preprocess import job as preprocess
from ti_trainer.runs.job import Job


@dataclass(frozen=True)
class Prefilled:
    """What a demonstration puts into the form, so that one press on Train shows the whole thing."""

    name: str
    init_text: str
    images: Path
    config: TrainConfig


@dataclass(frozen=True)
class Page:
    """What every panel works on. `txt2img` are components of the host's own tab, by the options that they stand for.

    `changes` says which words were written to since the start, and when: the host shows them, too, and they look new then.
    """

    host: Host
    job: Job
    prefilled: Prefilled | None = None
    txt2img: Mapping[str, Any] = field(default_factory=dict)
    preprocessing: preprocess.Job = field(default_factory=preprocess.Job)
    changes: Callable[[], Mapping[str, float]] = dict

    def refuse_if_busy(self, what: str) -> None:
        """BusyError while a training goes on: waiting for the model would take as long as that."""
        if self.job.snapshot().active:
            message = f"A training is going on, and the model is busy with it: {what} before or after."
            raise BusyError(message)

    def dataset_dir(self, text: str | None) -> Path:
        """The folder of a dataset that somebody typed; ConfigError if there is none, or it is not theirs to use."""
        path = entered_path(text)
        if path == Path():
            message = "Dataset directory: found nothing, expected a folder with images."
            raise ConfigError(message)
        self.host.check_folder(path)
        return path

    @property
    def is_public(self) -> bool:
        """Whether others than this computer's user may use it, who must not hold the program up."""
        return self.host.is_public

    @property
    def presets_dir(self) -> Path:
        """Where presets are saved."""
        return self.host.log_dir / presets.FOLDER
