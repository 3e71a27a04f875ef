"""The one seam towards whoever runs us: folders, the model that is loaded, a lock, and images drawn with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ti_trainer.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image

    from ti_trainer.captioning.tags import HostCaptioner
    from ti_trainer.model import DiffusionModel, ModelSpec, PredictionType, Vectors


@dataclass(frozen=True)
class GenerationRequest:
    """An image to be generated; width and height 0 take what the model was made for, an empty sampler the host's own."""

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
    """How a checkpoint is opened; what says auto follows from the checkpoint, or is the host's own business."""

    precision: str = "auto"
    clip_skip: int = 1
    prediction_type: PredictionType | Literal["auto"] = "auto"
    zero_terminal_snr: Literal["auto", "on", "off"] = "auto"

    @property
    def sets_spec(self) -> bool:
        """Whether what the model is was chosen by hand."""
        return self.prediction_type != "auto" or self.zero_terminal_snr != "auto"

    def of(self, spec: ModelSpec) -> ModelSpec:
        """The spec that was found, with what was chosen by hand; only v prediction has a zero terminal SNR.

        ConfigError if that was chosen with another one.
        """
        if self.prediction_type != "auto":
            spec = replace(spec, prediction_type=self.prediction_type)
        is_v = spec.prediction_type == "v_prediction"
        if self.zero_terminal_snr == "on" and not is_v:
            message = (
                "Zero terminal SNR (zero_terminal_snr): found on with epsilon prediction, which says nothing of pure noise; "
                "expected v prediction. Turn it off, or choose the prediction type v_prediction."
            )
            raise ConfigError(message, "zero_terminal_snr")
        found = spec.zero_terminal_snr if self.zero_terminal_snr == "auto" else self.zero_terminal_snr == "on"
        return replace(spec, zero_terminal_snr=found and is_v)


class Lease(Protocol):
    """Our turn with the model: who holds one tells the host how far it is."""

    def interrupted(self) -> bool:
        """Whether the host's own Interrupt was pressed."""
        ...

    def progress(self, done: int, total: int, text: str) -> None:
        """For the host's progress bar; cheap enough for every step."""
        ...

    def show(self, image: Image.Image) -> None:
        """For the host's live preview."""
        ...


class Host(Protocol):
    """What the trainer asks of the program around it."""

    embeddings_dir: Path
    log_dir: Path
    template_dirs: Sequence[Path]  # where a prompt template is looked for by its name
    samplers: Sequence[str]  # names that a Drawing may have; empty if there is no choice
    captioners: Mapping[str, HostCaptioner]  # by the names that the option `captioners` takes; ours are not among them
    face_models: Sequence[Path]  # folders of the host's in which a face detector's model may lie
    defaults: Mapping[str, Any]  # options of TrainConfig that the host's settings decide otherwise than we do
    is_public: bool  # whether others than this computer's user reach the page, who must neither look around nor hold it up
    torchscript: bool  # whether a discriminator may be TorchScript, a program: only the keyboard can allow that
    fixed: frozenset[str]  # options that are the host's own business and not offered: they are as in `defaults`

    def describe(self) -> str:
        """What model there is, in a few words, without loading it; ModelError if it cannot be trained."""
        ...

    def open_model(self, options: ModelOptions | None = None) -> DiffusionModel:
        """The checkpoint to train on, None: as it is open already, or the host's own choice; ModelError if it cannot be."""
        ...

    def lock(self) -> AbstractContextManager[Lease]:
        """Wait for our turn and hold it: nobody else uses the model meanwhile, and afterwards all is as it was before."""
        ...

    def check_folder(self, folder: Path) -> None:
        """Raise ConfigError unless whoever uses the page may read this folder."""
        ...

    def generate(self, model: DiffusionModel, request: GenerationRequest, words: Mapping[str, Vectors]) -> Image.Image:
        """Generate an image in whose prompts the words stand for these vectors."""
        ...

    def embeddings_changed(self) -> None:
        """Called after a file of the embeddings folder was written."""
        ...
