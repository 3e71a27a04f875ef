"""Host for a run without a WebUI: folders that the user named and a model loaded by diffusers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from PIL import Image

from ti_trainer.captioning.tags import HostCaptioner
from ti_trainer.errors import ConfigError
from ti_trainer.files import is_within
from ti_trainer.host import GenerationRequest, Lease, ModelOptions
from ti_trainer.hosts.diffusers import loading, sampling
from ti_trainer.hosts.diffusers.defaults import DEVICE, EMBEDDINGS_DIR, LOG_DIR, MODEL
from ti_trainer.hosts.diffusers.model import DiffusersModel
from ti_trainer.model import Vectors


class NullLease:
    """A Turn with nobody to tell."""

    def interrupted(self) -> bool:
        """There is no other Interrupt than ours."""
        return False

    def progress(self, done: int, total: int, text: str) -> None:
        """Nobody asks."""

    def show(self, image: Image.Image) -> None:
        """Nobody looks."""


@dataclass
class StandaloneHost:
    """`model` is `embedded`, a folder in diffusers' layout or a checkpoint file; `device` a torch device or `auto`.

    `folders` are those that images may lie in when others than this computer's user reach the page; None: any.
    """

    model: str = MODEL
    device: str = DEVICE
    embeddings_dir: Path = EMBEDDINGS_DIR
    log_dir: Path = LOG_DIR
    folders: Sequence[Path] | None = None
    template_dirs: Sequence[Path] = ()
    samplers: Sequence[str] = ()
    captioners: Mapping[str, HostCaptioner] = field(default_factory=dict)
    face_models: Sequence[Path] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    torchscript: bool = False

    def __post_init__(self) -> None:
        """Nothing is loaded yet."""
        self._turn, self._opening = Lock(), Lock()
        self._opened: DiffusersModel | None = None

    @property
    def is_public(self) -> bool:
        """They are why there are folders."""
        return self.folders is not None

    @property
    def fixed(self) -> frozenset[str]:
        """A regular expression can keep a server busy for ever, so strangers may not give one."""
        return frozenset({"filename_word_regex"}) if self.is_public else frozenset()

    def describe(self) -> str:
        """What was asked for, and once it is open, what it is; whether it can be read shows when it is."""
        name = "the embedded tiny model" if self.model == "embedded" else Path(self.model).stem
        if self._opened is None or self.model == "embedded":
            return name
        chosen = ", as chosen for the last run" if self._opened.options.sets_spec else ""
        return f"{name} ({self._opened.spec}{chosen})"

    def open_model(self, options: ModelOptions | None = None) -> DiffusersModel:
        """Load it, or take the one that was loaded; ModelError if that cannot be done."""
        with self._opening:
            opened, options = self._opened, options or (self._opened and self._opened.options) or ModelOptions()
            dtype = loading.pick_dtype(options.precision, loading.pick_device(self.device))
            if opened is None or opened.dtype != dtype:
                self._opened = opened = None  # two would need twice the memory
                self._opened = loading.load(self.model, self.device, options)
            elif opened.options != options:
                self._opened = opened.with_options(options)
            return self._opened

    @contextmanager
    def lock(self) -> Iterator[Lease]:
        """One run or one image at a time."""
        device = loading.pick_device(self.device)
        with self._turn, torch.random.fork_rng([device] if device.type == "cuda" else []):
            try:
                yield NullLease()
            finally:
                if self._opened is not None:
                    self._opened.use_all_memory()

    def check_folder(self, folder: Path) -> None:
        """ConfigError for a folder outside those that the page may show."""
        if self.folders is None or any(is_within(folder, each) for each in self.folders):
            return
        allowed = ", ".join(map(str, self.folders))
        message = (
            f"{folder} is not among the folders that this page may read ({allowed}): start it with --images-dir for more."
        )
        raise ConfigError(message)

    def generate(self, model: DiffusersModel, request: GenerationRequest, words: Mapping[str, Vectors]) -> Image.Image:
        """Generate an image."""
        return sampling.generate(model, request, words)

    def embeddings_changed(self) -> None:
        """Nothing here keeps a list."""
