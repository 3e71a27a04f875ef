"""The Host of the command line and of the standalone page, with models loaded by diffusers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from PIL import Image

from ti_trainer.captioning.captioner import HostCaptioner
from ti_trainer.errors import ConfigError
from ti_trainer.files import is_within
from ti_trainer.host import GenerationRequest, Host, Lease, ModelOptions, ModelReference
from ti_trainer.hosts.diffusers import loading, sampling
from ti_trainer.hosts.diffusers.defaults import DEVICE, EMBEDDINGS_DIR, LOG_DIR, MODEL, model_reference
from ti_trainer.hosts.diffusers.model import DiffusersModel
from ti_trainer.model import DiffusionModel, Vectors


class NullLease:
    """A Lease for a host without a progress display."""

    def interrupted(self) -> bool:
        """This host has no Interrupt button of its own."""
        return False

    def progress(self, done: int, total: int, text: str) -> None:
        """Do nothing."""

    def show(self, image: Image.Image) -> None:
        """Do nothing."""


@dataclass
class StandaloneHost:
    """A Host without a WebUI around it.

    `model` is `embedded`, a folder in diffusers' layout or a checkpoint file; `device` a torch device or `auto`.
    `is_public`: others than this computer's user reach the page. Images are read from `folders` only; None: from any folder,
    or from none if `is_public`.
    """

    model: str = MODEL
    device: str = DEVICE
    embeddings_dir: Path = EMBEDDINGS_DIR
    log_dir: Path = LOG_DIR
    folders: Sequence[Path] | None = None
    template_dirs: Sequence[Path] = ()
    lora_dirs: Sequence[Path] = ()
    samplers: Sequence[str] = ()
    captioners: Mapping[str, HostCaptioner] = field(default_factory=dict)
    face_models: Sequence[Path] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    torchscript: bool = False
    is_public: bool = False

    def __post_init__(self) -> None:
        """Load nothing yet."""
        self._in_use, self._opening = Lock(), Lock()
        self._opened: DiffusersModel | None = None

    @property
    def fixed(self) -> frozenset[str]:
        """On a public page the regular expression is fixed: matching can block the server for ever."""
        return frozenset({"filename_word_regex"}) if self.is_public else frozenset()

    def describe(self) -> str:
        """The model's name, and its spec once it is open. An unreadable model is reported by `open_model`."""
        name = "the embedded tiny model" if self.model == MODEL else Path(self.model).stem
        if self._opened is None or self.model == MODEL:
            return name
        chosen = ", as chosen for the last run" if self._opened.options.sets_spec else ""
        return f"{name} ({self._opened.spec}{chosen})"

    def chosen_model(self) -> ModelReference:
        """The model that it was started with, or that `use_model` has chosen since."""
        return model_reference(self.model)

    def use_model(self, model: str) -> None:
        """Use another model from now on; it is loaded when it is opened."""
        with self._opening:
            if model != self.model:
                self.model, self._opened = model, None

    def open_model(self, options: ModelOptions | None = None) -> DiffusersModel:
        """Load the model unless it is loaded already; ModelError if it cannot be."""
        with self._opening:
            opened, options = self._opened, options or (self._opened and self._opened.options) or ModelOptions()
            dtype = loading.pick_dtype(options.precision, loading.pick_device(self.device))
            if opened is None or opened.dtype != dtype:
                self._opened = opened = None  # before loading: two models would need twice the memory
                opened = loading.load(self.model, self.device, options)
            elif opened.options != options:
                opened = opened.with_options(options)
            self._opened = opened
            return opened

    @contextmanager
    def lock(self) -> Iterator[Lease]:
        """One run or one image at a time."""
        device = loading.pick_device(self.device)
        with self._in_use, torch.random.fork_rng([device] if device.type == "cuda" else []):
            try:
                yield NullLease()
            finally:
                if self._opened is not None:
                    self._opened.use_all_memory()

    def check_folder(self, folder: Path) -> None:
        """ConfigError for a folder outside of `folders`."""
        if self.folders is None and not self.is_public:
            return
        folders = self.folders or ()
        if any(is_within(folder, each) for each in folders):
            return
        allowed = ", ".join(map(str, folders)) or "none"
        message = (
            f"The folder {folder} is not among the folders that this page may read ({allowed}): choose one of these, or ask "
            "the person who started the page to add it."
        )
        raise ConfigError(message)

    def generate(self, model: DiffusionModel, request: GenerationRequest, embeddings: Mapping[str, Vectors]) -> Image.Image:
        """Generate an image with a model that `open_model` returned."""
        if not isinstance(model, DiffusersModel):
            message = f"expected a DiffusersModel, found {type(model).__name__}"
            raise TypeError(message)
        return sampling.generate(model, request, embeddings)

    def embeddings_changed(self) -> None:
        """Do nothing: this host keeps no list of embeddings."""


_: type[Host] = StandaloneHost
