"""The Host interface: the program that the trainer runs in, with its folders, its model, a lock, and image generation."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ti_trainer.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image

    from ti_trainer.captioning.captioner import HostCaptioner
    from ti_trainer.model import DiffusionModel, ModelSpec, PredictionType, Vectors


@dataclass(frozen=True)
class GenerationRequest:
    """An image to generate; width and height 0 are the model's default size, an empty sampler the host's default."""

    prompt: str
    negative_prompt: str = ""
    steps: int = 20
    cfg_scale: float = 5.0
    seed: int = 1
    width: int = 0
    height: int = 0
    sampler: str = ""


@dataclass(frozen=True)
class ModelOptions:
    """How a checkpoint is opened; auto: as the checkpoint or the host says."""

    precision: str = "auto"
    clip_skip: int = 1
    prediction_type: PredictionType | Literal["auto"] = "auto"
    zero_terminal_snr: Literal["auto", "on", "off"] = "auto"

    @property
    def sets_spec(self) -> bool:
        """Whether the user chose a part of the model's spec."""
        return self.prediction_type != "auto" or self.zero_terminal_snr != "auto"

    def of(self, spec: ModelSpec) -> ModelSpec:
        """The checkpoint's spec with the user's choices; ConfigError for zero terminal SNR without v prediction."""
        if self.prediction_type != "auto":
            spec = replace(spec, prediction_type=self.prediction_type)
        is_v = spec.prediction_type == "v_prediction"
        if self.zero_terminal_snr == "on" and not is_v:
            message = (
                "Zero terminal SNR (zero_terminal_snr): found on with epsilon prediction, undefined for pure noise; "
                "expected v prediction. Turn it off, or choose the prediction type v_prediction."
            )
            raise ConfigError(message, "zero_terminal_snr")
        found = spec.zero_terminal_snr if self.zero_terminal_snr == "auto" else self.zero_terminal_snr == "on"
        return replace(spec, zero_terminal_snr=found and is_v)


@dataclass(frozen=True)
class ModelReference:
    """Which model a run is meant for: its name, its file or folder, or 'embedded', and its hash.

    The path or the hash is empty where it is not known, or not without reading gigabytes.
    """

    name: str
    path: str = ""
    hash: str = ""

    def __str__(self) -> str:
        """The name, with the hash as WebUIs write it."""
        return f"{self.name} [{self.hash}]" if self.hash else self.name

    def is_same(self, other: ModelReference) -> bool:
        """Whether both are the same model, as far as both say."""
        if self.hash and other.hash:
            return self.hash == other.hash
        if self.path and other.path:
            one, two = (os.path.normcase(os.path.realpath(each.path)) for each in (self, other))
            return one == two
        return self.name == other.name


class Lease(Protocol):
    """Exclusive use of the host's model, with the host's progress display."""

    def interrupted(self) -> bool:
        """Whether the host's own Interrupt was pressed."""
        ...

    def progress(self, done: int, total: int, text: str) -> None:
        """Update the host's progress bar; cheap enough for every step."""
        ...

    def show(self, image: Image.Image) -> None:
        """Show an image as the host's live preview."""
        ...


class Host(Protocol):
    """The program that the trainer runs in."""

    @property
    def embeddings_dir(self) -> Path:
        """The folder of embeddings."""
        ...

    @property
    def log_dir(self) -> Path:
        """The folder of training runs."""
        ...

    @property
    def template_dirs(self) -> Sequence[Path]:
        """Folders that are searched for a prompt template's name."""
        ...

    @property
    def lora_dirs(self) -> Sequence[Path]:
        """The host's own folders of LoRAs, which are searched for a LoRA's name."""
        ...

    @property
    def samplers(self) -> Sequence[str]:
        """Names for `GenerationRequest.sampler`; empty if there is no choice."""
        ...

    @property
    def captioners(self) -> Mapping[str, HostCaptioner]:
        """The host's own captioners by their names in the option `captioners`."""
        ...

    @property
    def face_models(self) -> Sequence[Path]:
        """The host's folders that may contain a face detector's model."""
        ...

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Options of TrainConfig for which the host's settings give another default."""
        ...

    @property
    def is_public(self) -> bool:
        """Whether others than this computer's user reach the page: they may not list folders or block the server."""
        ...

    @property
    def torchscript(self) -> bool:
        """Whether a discriminator may be TorchScript, which is a program: only the command line can allow it."""
        ...

    @property
    def fixed(self) -> frozenset[str]:
        """Options that the host decides: they are not offered, and have the values in `defaults`."""
        ...

    def describe(self) -> str:
        """A short description of the model, without loading it; ModelError if it cannot be trained."""
        ...

    def chosen_model(self) -> ModelReference:
        """The model that a run is trained with if it is started now, without loading it; ModelError if there is none."""
        ...

    def open_model(self, options: ModelOptions | None = None) -> DiffusionModel:
        """Open the checkpoint to train on; None: with the options that it is open with, or the host's. ModelError."""
        ...

    def lock(self) -> AbstractContextManager[Lease]:
        """Wait until the model is free, then hold it exclusively; afterwards the host's state is restored."""
        ...

    def check_folder(self, folder: Path) -> None:
        """Raise ConfigError unless users of the page may read this folder."""
        ...

    def generate(self, model: DiffusionModel, request: GenerationRequest, embeddings: Mapping[str, Vectors]) -> Image.Image:
        """Generate an image with a model of this host; the names of embeddings in prompts stand for their vectors."""
        ...

    def embeddings_changed(self) -> None:
        """To be called after a file in the embeddings folder was written."""
        ...
