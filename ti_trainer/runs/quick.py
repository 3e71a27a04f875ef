"""Quick training: prepare images, create an embedding and train it, with options chosen for what it is to be.

`QuickTraining` does the work in stages and reports each; `quick_job.py` runs it in the background for the page. Everything
is written where it would be by hand: datasets, embeddings and runs can be changed and used with the other commands.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from ti_trainer.captioning import captioners
from ti_trainer.config import presets
from ti_trainer.config.preprocessing import PreprocessConfig, options
from ti_trainer.config.training import TrainConfig
from ti_trainer.data import image_quality
from ti_trainer.data.caption_files import captions_among
from ti_trainer.data.image_files import list_images
from ti_trainer.data.left_out import leave_out
from ti_trainer.errors import ConfigError, DatasetError, StoppedError, TITrainerError
from ti_trainer.formats import embeddings_dir
from ti_trainer.formats.naming import name_warnings
from ti_trainer.functional.lr_scheduler import AUTO
from ti_trainer.host import Host, ModelReference
from ti_trainer.model import DiffusionModel
from ti_trainer.preprocess import faces
from ti_trainer.preprocess.manifest import Manifest
from ti_trainer.preprocess.runner import Preprocessing
from ti_trainer.preprocess.source import real
from ti_trainer.preprocess.summary import Summary
from ti_trainer.runs import locks
from ti_trainer.runs.builders import model_options
from ti_trainer.runs.checks import check_model, check_options
from ti_trainer.runs.datasets import check_folder, datasets_dir
from ti_trainer.runs.quick_stages import Report, Stage, dataset_stage, images_stage, reasons
from ti_trainer.runs.session import Session
from ti_trainer.runs.suggestions import free_name, is_trained
from ti_trainer.wording import counted


@dataclass(frozen=True)
class Kind:
    """What an embedding is to be: its init text where none is given, its vectors, templates, and how images are cropped."""

    init_text: str
    num_vectors: int
    template: str
    resize: Literal["focal", "buckets"]


STEPS_PER_IMAGE = 150  # at most: 300 steps on one image overfit it (docs/LOG.md)
FEW_IMAGES, PRESERVATION_OF_FEW = 3, 0.5  # with at most 3 images, prompt preservation is raised (docs/LOG.md)
KINDS = {  # by their presets
    "person": Kind("person", 4, "subject", "focal"),
    "object": Kind("object", 2, "subject", "focal"),
    "style": Kind("style", 4, "style", "buckets"),
}


@dataclass(frozen=True)
class QuickTraining:
    """Train a new embedding of this name on a folder of images, which are not changed.

    `kind` is one of KINDS. `options` of the run take precedence over those of the kind, but each image has at most
    STEPS_PER_IMAGE steps. An embedding of this name that was created but never trained is replaced; with `overwrite`, any
    is. `intended_model` is that of `Session`.
    """

    host: Host
    name: str
    images: Path
    kind: str = "object"
    init_text: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    overwrite: bool = False
    intended_model: ModelReference | None = None

    def check(self) -> None:
        """Raise now what can be found wrong without opening an image; ConfigError names the field in `option`."""
        self.check_name()
        check_folder(self.host, self.images)
        self.preprocessing().check()

    def check_name(self) -> None:
        """The part of `check` that needs no images."""
        if self.kind not in KINDS:
            message = f"Kind: found {self.kind!r}, expected one of {', '.join(KINDS)}."
            raise ConfigError(message, "kind")
        if not self.name:
            message = "The name is empty: enter the word that you will write in prompts, such as my-cat."
            raise ConfigError(message, "name")
        try:
            embeddings_dir.checked_new_name(self.name)
            check_options(self.host, self.name, self.config())
            name_warnings(self._model(), self.host.embeddings_dir, self.name)
        except ConfigError as error:
            raise ConfigError(str(error), "name") from error
        if not self.overwrite and is_trained(self.host, self.name):
            free = free_name(self.host, self.name)
            message = f"An embedding {self.name!r} exists already: choose another name, such as {free}, or replace it."
            raise ConfigError(message, "overwrite")

    def on(self, images: Path) -> QuickTraining:
        """The same on another folder of images."""
        return replace(self, images=images)

    @cached_property
    def dataset(self) -> Path:
        """The folder of the dataset, named after the embedding; numbered if that has images from elsewhere."""
        sources = {str(real(path)) for path in list_images(self.images).images}
        for number in itertools.count(1):
            folder = datasets_dir(self.host).resolve() / (self.name if number == 1 else f"{self.name}-{number}")
            if not os.path.lexists(folder):
                break
            try:
                made_from = {each.path for each in Manifest.of(folder).entries}
            except (ConfigError, OSError):
                continue
            if made_from and made_from <= sources:
                break
        return folder

    @cached_property
    def is_captioned(self) -> bool:
        """Whether every image has a caption."""
        listing = list_images(self.images)
        return len(captions_among(listing.files, listing.images)) == len(listing.images)

    def preprocessing(self, *, captions: bool = True) -> Preprocessing:
        """How the dataset is made; with a captioner that is installed, unless all images have captions."""
        side = max(self._model().default_size_px, *(each.low or 0 for each in options() if each.name == "width"))
        config = PreprocessConfig(width=int(side), height=int(side), resize=self._kind.resize)
        captioning = None
        if captions and not self.is_captioned and (names := captioners.installed(config, self.host.captioners)):
            config = replace(config, captioners=names[0])
            captioning = partial(captioners.opened, config, self.host.captioners)
        return Preprocessing(self.images, self.dataset, config, [faces.FOLDER, *self.host.face_models], captioning)

    def config(self, *, captions: bool = False) -> TrainConfig:
        """The options of the run; with `captions`, its prompts have them."""
        template = self._kind.template + ("_filewords" if captions else "")
        chosen = {**presets.BUILT_IN[self.kind].values, **self.options, "learning_rate": AUTO, "template": template}
        chosen["buckets"] = self._kind.resize == "buckets"
        return TrainConfig.from_dict({**self.host.defaults, **chosen})

    def prepare(
        self,
        preprocess: Callable[[Preprocessing], Summary],
        report: Report,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Session:
        """Do the stages before training, and report each when it begins and ends; the run to train.

        `preprocess` runs the preprocessing.

        Raises:
            StoppedError: stopped. TITrainerError: a stage failed, which is the one that was reported last.
        """
        report(Stage("images", "running"))
        found = self._examined(partial(_progress, report), should_stop)
        report(images_stage(self.images, found))
        report(Stage("dataset", "running"))
        warnings: list[str] = []
        summary = self._preprocessed(preprocess, warnings)
        _check_stop(should_stop, stopped=summary.stopped)
        captioned = self._without(found.suggested if found else frozenset(), warnings)
        config = self._for_few_images(self.config(captions=captioned), warnings)
        report(dataset_stage(self.preprocessing(), summary, warnings, captioned=captioned))
        report(Stage("embedding", "running"))
        report(self._created())
        _check_stop(should_stop)
        return Session(self.host, self.name, self.dataset, config, intended_model=self.intended_model)

    @property
    def _kind(self) -> Kind:
        return KINDS[self.kind]

    @property
    def _start(self) -> str:
        return self.init_text.strip() or self._kind.init_text

    def _model(self) -> DiffusionModel:
        return self.host.open_model(model_options(self.config()))

    def _examined(
        self, progress: Callable[[int, int], None], should_stop: Callable[[], bool]
    ) -> image_quality.Report | None:
        """Look for duplicates and unusable images; None without the package for that. DatasetError if none is left."""
        side = self._model().default_size_px
        try:
            found = image_quality.check(self.images, side, side, progress=progress, should_stop=should_stop)
        except ConfigError:  # imagehash is missing, which `images_stage` says
            return None
        if len(found.suggested) == found.count:
            message = f"None of the {counted(found.count, 'image')} can be used: {reasons(found, found.suggested)}. "
            message += "Choose other images."
            raise DatasetError(message)
        return found

    def _preprocessed(self, preprocess: Callable[[Preprocessing], Summary], warnings: list[str]) -> Summary:
        work = self.preprocessing()
        if work.captioning is not None:
            try:
                return preprocess(work)
            except TITrainerError as error:
                warnings.append(f"No captions were written: {error}")
                work = self.preprocessing(captions=False)
        return preprocess(work)

    def _without(self, suggested: frozenset[Path], warnings: list[str]) -> bool:
        """Move the results of these images out of the dataset; whether all that are left have captions."""
        unwanted = {str(real(path)) for path in suggested}
        entries = Manifest.of(self.dataset).entries
        names = [name for each in entries if each.path in unwanted for name in each.images]
        there = [self.dataset / name for name in names if (self.dataset / name).exists()]
        if there:
            leave_out(self.dataset, there, warnings.append)
        listing = list_images(self.dataset)
        return len(captions_among(listing.files, listing.images)) == len(listing.images)

    def _for_few_images(self, config: TrainConfig, notes: list[str]) -> TrainConfig:
        """The options with what few images need, which `notes` say: fewer steps, and more prompt preservation."""
        count = len(list_images(self.dataset).images)
        images, steps = counted(count, "image"), STEPS_PER_IMAGE * count
        if steps < config.max_steps:
            notes.append(f"Training takes {steps} steps instead of {config.max_steps}: with {images}, more steps overfit.")
            config = replace(config, max_steps=steps)
        before = config.prompt_preservation
        if count <= FEW_IMAGES and before == TrainConfig.prompt_preservation:
            notes.append(
                f"Prompt preservation is {PRESERVATION_OF_FEW} instead of {before}: with {images}, prompts are soon ignored."
            )
            config = replace(config, prompt_preservation=PRESERVATION_OF_FEW)
        return config

    def _created(self) -> Stage:
        folder, warnings, config = self.host.embeddings_dir, list[str](), self.config()
        overwrite = self.overwrite or not is_trained(self.host, self.name)
        with self.host.lock(), locks.embeddings_held(folder, (self.name,)):
            check_model(self.host, self.intended_model)
            model = self.host.open_model(model_options(config))
            warnings += name_warnings(model, folder, self.name)
            tokens = len(next(iter(model.token_embeddings(self._start).values())))
            count = max(self._kind.num_vectors, min(tokens, 2 * self._kind.num_vectors))
            start = (self.name, self._start, count)
            if overwrite and not self.overwrite and self._differs(count):
                warnings.append("The embedding of this name, which had not been trained, was replaced.")
            path = embeddings_dir.create(folder, model, *start, overwrite=overwrite, warn=warnings.append)
            self.host.embeddings_changed()
        text = f"{path.stem}: {counted(count, 'vector')}, starting from {self._start!r}."
        return Stage("embedding", "done", text, tuple(warnings))

    def _differs(self, count: int) -> bool:
        """Whether there is an embedding of this name that was created from another text, or with more or fewer vectors."""
        if embeddings_dir.find(self.host.embeddings_dir, self.name) is None:
            return False
        found, _ = embeddings_dir.load(self.host.embeddings_dir, self.name)
        return (found.info.get("init_text"), found.num_vectors) != (self._start, count)


def what_of(text: str) -> tuple[str, str]:
    """The kind and the init text of an answer to "What is it?": a kind, or else words that describe an object or style."""
    text = text.strip()
    if text.lower() in KINDS:
        return text.lower(), ""
    return ("style" if "style" in text.lower().split() else "object"), text


def _check_stop(should_stop: Callable[[], bool], *, stopped: bool = False) -> None:
    if stopped or should_stop():
        message = "Stopped before training. What is done is kept: start again to continue."
        raise StoppedError(message)


def _progress(report: Report, done: int, total: int) -> None:
    report(Stage("images", "running", progress=(done, total)))
