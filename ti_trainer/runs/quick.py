"""Quick training: prepare images, create an embedding and train it, with options chosen for what it is to be.

`QuickTraining` does the work in stages and reports each; `quick_job.py` runs it in the background for the page. Everything
is written where it would be by hand: datasets, embeddings and runs can be changed and used with the other commands.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Collection, Container, Mapping, Sequence
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
from ti_trainer.host import Host
from ti_trainer.model import DiffusionModel
from ti_trainer.preprocess import faces
from ti_trainer.preprocess.manifest import Manifest
from ti_trainer.preprocess.runner import Preprocessing
from ti_trainer.preprocess.source import real
from ti_trainer.preprocess.summary import Summary
from ti_trainer.runs import locks
from ti_trainer.runs.builders import model_options
from ti_trainer.runs.checks import check_options
from ti_trainer.runs.datasets import check_folder, datasets_dir
from ti_trainer.runs.session import Session
from ti_trainer.runs.suggestions import free_name, is_trained
from ti_trainer.wording import counted

STAGES = {  # in their order, with their titles
    "images": "Images",
    "dataset": "Dataset",
    "embedding": "Embedding",
    "training": "Training",
    "result": "Result",
}
NAMED = 5  # files in a message

StageStatus = Literal["waiting", "running", "done", "stopped", "failed"]
Report = Callable[["Stage"], None]


@dataclass(frozen=True)
class Kind:
    """What an embedding is to be: its init text where none is given, its vectors, templates, and how images are cropped."""

    init_text: str
    num_vectors: int
    template: str
    resize: Literal["focal", "buckets"]


KINDS = {  # by their presets
    "person": Kind("person", 4, "subject", "focal"),
    "object": Kind("object", 2, "subject", "focal"),
    "style": Kind("style", 4, "style", "buckets"),
}

FAVORS = {  # what matters more: that the rest of a prompt is followed, or likeness to the images; measured in docs/LOG.md
    "prompts": {"optimizer": "sphere", "learning_rate": "auto"},
    "images": {"optimizer": "adamw", "learning_rate": "auto"},
}


@dataclass(frozen=True)
class Stage:
    """What one of STAGES did, or is doing."""

    name: str
    status: StageStatus = "waiting"
    text: str = ""
    warnings: tuple[str, ...] = ()
    progress: tuple[int, int] = (0, 0)  # done, of a total


@dataclass(frozen=True)
class QuickTraining:
    """Train a new embedding of this name on a folder of images, which are not changed.

    `kind` is one of KINDS and `favor` one of FAVORS. `options` of the run take precedence over those of the kind. An
    embedding of this name that was created but never trained is replaced; with `overwrite`, any is.
    """

    host: Host
    name: str
    images: Path
    kind: str = "object"
    init_text: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    overwrite: bool = False
    favor: str = "prompts"

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
        if self.favor not in FAVORS:
            message = f"What matters more: found {self.favor!r}, expected one of {', '.join(FAVORS)}."
            raise ConfigError(message, "favor")
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
        chosen = {**presets.BUILT_IN[self.kind].values, **self.options, **FAVORS[self.favor], "template": template}
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
        report(self._images_stage(found))
        report(Stage("dataset", "running"))
        warnings: list[str] = []
        summary = self._preprocessed(preprocess, warnings)
        _check_stop(should_stop, stopped=summary.stopped)
        captioned = self._without(found.suggested if found else frozenset(), warnings)
        report(self._dataset_stage(summary, warnings, captioned=captioned))
        report(Stage("embedding", "running"))
        report(self._created())
        _check_stop(should_stop)
        return Session(self.host, self.name, self.dataset, self.config(captions=captioned))

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
        except ConfigError:  # imagehash is missing, which `_images_stage` says
            return None
        if len(found.suggested) == found.count:
            message = f"None of the {counted(found.count, 'image')} can be used: {_reasons(found, found.suggested)}. "
            message += "Choose other images."
            raise DatasetError(message)
        return found

    def _images_stage(self, found: image_quality.Report | None) -> Stage:
        if found is None:
            warning = "Duplicates were not looked for, since the package imagehash is not installed."
            return Stage("images", "done", counted(len(list_images(self.images).images), "image"), (warning,))
        text = counted(found.count, "image")
        if found.suggested:
            text += f"; {len(found.suggested)} left out: {_reasons(found, found.suggested)}"
        best = {group[0] for group in found.alike}
        others = [path for path in found.suspects if path not in found.suggested and _other_reasons(found, path, best)]
        warning = f"Check these: {_reasons(found, others, best)}." if others else ""
        return Stage("images", "done", f"{text}.", tuple(filter(None, (warning,))))

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

    def _dataset_stage(self, summary: Summary, warnings: Sequence[str], *, captioned: bool) -> Stage:
        listing, config = list_images(self.dataset), self.preprocessing().config
        images, written = listing.images, len(captions_among(listing.files, listing.images))
        if written and not captioned:
            some = f"Captions are not used, since only {written} of {len(images)} images have one."
            warnings = (*warnings, f"{some} Write captions for all images, or for none, and start again.")
        how = "cropped around the subject" if config.resize == "focal" else "each with its own aspect ratio"
        prompts = "with captions" if captioned else "without captions"
        text = f"{counted(len(images), 'image')} at {config.width} x {config.height} px, {how}, {prompts}: {self.dataset}"
        failed = [f"{name} could not be used: {reason.rstrip('.')}." for name, reason in summary.failed[:NAMED]]
        if len(summary.failed) > NAMED:
            failed.append(f"{len(summary.failed) - NAMED} more could not be used.")
        return Stage("dataset", "done", text, (*warnings, *failed, *summary.notes))

    def _created(self) -> Stage:
        folder, warnings, config = self.host.embeddings_dir, list[str](), self.config()
        overwrite = self.overwrite or not is_trained(self.host, self.name)
        with self.host.lock(), locks.embeddings_held(folder, (self.name,)):
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


def _other_reasons(found: image_quality.Report, path: Path, best: Container[Path]) -> list[str]:
    """Why an image may be unsuitable, apart from being the best of several alike."""
    return list(found.reasons[path][1:] if path in best else found.reasons[path])


def _reasons(found: image_quality.Report, paths: Collection[Path], best: Container[Path] = ()) -> str:
    """Some of these images with what was found about each."""
    named = sorted(paths)
    some = [f"{path.name} ({'; '.join(_other_reasons(found, path, best))})" for path in named[:NAMED]]
    more = [f"and {len(named) - NAMED} more"] if len(named) > NAMED else []
    return ", ".join(some + more)
