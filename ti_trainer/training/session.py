"""A training from beginning to end: open, prepare, run, write. What the command line and the page both call.

Knows nothing of either: they watch through observers and say what they want through `Controls`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event as Flag
from typing import Any

import torch
from PIL import Image

from ti_trainer import __version__, embeddings_dir, formats
from ti_trainer.config import TrainConfig
from ti_trainer.data.dataset import Dataset
from ti_trainer.data.images import frame_of
from ti_trainer.data.pictures import find_images
from ti_trainer.data.prompts import load_template
from ti_trainer.embedding import Embedding, negative_name
from ti_trainer.errors import ConfigError, StoppedError, TrainingError
from ti_trainer.files import entered_path
from ti_trainer.host import Drawing, Host
from ti_trainer.model import DiffusionModel, Vectors, check_fits
from ti_trainer.training import discriminator
from ti_trainer.training.data_sets import subsets_of
from ti_trainer.training.figures import before_and_after, plot_losses
from ti_trainer.training.observers import HostProgress, Observer
from ti_trainer.training.parts import dataset_of, model_options, pixel_loss_of, writers_of
from ti_trainer.training.pixels import PixelLoss, places_at_once
from ti_trainer.training.run import Run, changes
from ti_trainer.training.trainer import Finished, Trainer, TrainState, check_steps

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Controls:
    """What is asked of a run while it goes on, from any thread: to stop, to save a copy now, to draw a preview now."""

    stop: Flag = field(default_factory=Flag)
    copy: Flag = field(default_factory=Flag)
    preview: Flag = field(default_factory=Flag)


@dataclass(frozen=True)
class Result:
    """What a training left behind."""

    embedding: Embedding
    embedding_file: Path
    run: Run
    reason: str
    num_images: int
    skipped: tuple[tuple[Path, str], ...]
    negative_file: Path | None = None


@dataclass
class Session:
    """One training of one embedding, or the rest of the run `resume`.

    `images` is a folder of pictures, or a .toml file that lists some.
    """

    host: Host
    name: str
    images: Path
    config: TrainConfig
    resume: Run | None = None
    warn: Callable[[str], None] = log.warning
    say: Callable[[str], None] = log.info

    def check(self) -> None:
        """Refuse at once what would be refused later: the folder, the template, the embedding, and its fit to the model."""
        self._check_cheaply()
        loaded = self._load()
        model = self.host.open_model(model_options(self.config))
        for each, _ in loaded:
            check_fits(model, each)
        frame_of(self.config, model.default_size_px)
        begun_on = self.resume.settings().get("model", model.name) if self.resume else model.name
        if begun_on != model.name:
            message = f"This run was begun on {begun_on}, and {model.name} is loaded now: choose {begun_on} again to go on."
            raise ConfigError(message)
        check_steps(self.name, self.resume.step if self.resume else loaded[0][0].step, self.config)

    def train(
        self,
        observers: Callable[[Trainer, Run], Sequence[Observer]] = lambda trainer, run: (),
        controls: Controls | None = None,
        loading: Callable[[int, int], None] = lambda done, total: None,
    ) -> Result:
        """Train and write the embedding, also when stopped. On TrainingError what was learned before it is written first.

        StoppedError if that comes before the first step.

        `loading` is told how many pictures are read, of how many, from when it is our turn with the host.
        """
        config, controls = self.config, controls or Controls()
        template = self._check_cheaply()
        with self.host.lock() as turn:
            # Not before: somebody else's turn may have made it anew.
            loaded = self._load()
            self._warn_of_the_negative(loaded)

            def should_stop() -> bool:
                return controls.stop.is_set() or turn.interrupted()

            def still_loading(done: int, total: int) -> None:
                loading(done, total)
                if should_stop():
                    message = "Stopped before the first step: nothing was changed."
                    raise StoppedError(message)

            subsets = subsets_of(self.host, self.images, self.warn)
            total = sum(len(find_images(subset.folder)) for subset in subsets)
            still_loading(0, total)
            model = self.host.open_model(model_options(config))
            dataset = dataset_of(config, self.name, model, template, subsets, still_loading, self.warn)
            still_loading(total, total)
            largest = max(item.latents[0].numel() for item in dataset.items)
            pixel_loss = pixel_loss_of(config, model.device)
            decoded = 0 if pixel_loss is None else places_at_once(config.batch_size, largest)
            if said := model.fit_memory((2 if config.negative else 1) * config.batch_size * largest, decoded):
                self.say(said)
            trainer, run = self._prepared(model, dataset, loaded, pixel_loss)
            files = [embeddings_dir.trainable_file(file, len(each.vectors)) for each, file in loaded]

            def draw(drawing: Drawing, words: Mapping[str, Vectors]) -> Image.Image:
                picture = self.host.draw(model, drawing, words)
                turn.show(picture)
                return picture

            asked = (controls.copy, controls.preview)
            watching = [
                *observers(trainer, run),
                HostProgress(turn, trainer),
                *writers_of(config, trainer, run, draw, asked, self.warn, ending=should_stop()),
            ]
            reason = self._run(trainer, run, watching, files, should_stop)
        plot_losses(run)
        before_and_after(run)
        negative = files[1] if len(files) > 1 else None
        return Result(trainer.embedding, files[0], run, reason, len(dataset.items), dataset.skipped, negative)

    def _load(self) -> list[tuple[Embedding, Path]]:
        """The embedding, and the negative one if it is trained too, with their files; ConfigError if one is not there."""
        folder = self.host.embeddings_dir
        loaded = [embeddings_dir.load(folder, self.name)]
        if self.config.negative:
            name = negative_name(self.name)
            if embeddings_dir.find(folder, name) is None:
                message = (
                    f"There is no embedding {name!r} in {folder}, the negative of {self.name!r}: create {name!r}, of some 6 "
                    "vectors, as an embedding of its own, or turn DreamArtist off."
                )
                raise ConfigError(message, "negative")
            loaded.append(embeddings_dir.load(folder, name))
        return loaded

    def _warn_of_the_negative(self, loaded: Sequence[tuple[Embedding, Path]]) -> None:
        """Where a word and its negative would no longer belong together."""
        name = negative_name(self.name)
        if not self.config.negative and embeddings_dir.find(self.host.embeddings_dir, name) is not None:
            self.warn(f"{name} is there, but Train with DreamArtist (--negative) is off: only {self.name} is trained.")
        steps = [each.step for each, _ in loaded]
        if len(set(steps)) > 1:
            self.warn(f"{self.name} is at step {steps[0]} and {name} at {steps[1]}: they were not made together.")

    def _prepared(
        self,
        model: DiffusionModel,
        dataset: Dataset,
        loaded: Sequence[tuple[Embedding, Path]],
        pixel_loss: PixelLoss | None,
    ) -> tuple[Trainer, Run]:
        """The trainer, where the run to go on with has come to, and the run's folder."""
        embedding, *others = (
            replace(
                each,
                checkpoint=model.name,
                checkpoint_hash=model.checkpoint_hash,
                info={**each.info, "num_images": len(dataset.items), "ti_trainer": __version__},
            )
            for each, _ in loaded
        )
        negative = others[0] if others else None
        run, settings = self.resume, self._settings(model, dataset)
        if run is None:
            state = None if negative is not None else _webui_state(loaded[0][1], embedding, model)
            trainer = Trainer(model, dataset, embedding, self.config, state, negative, pixel_loss)
            return trainer, Run.create(self.host.log_dir, self.name, settings)
        state, fingerprint = run.load_state()
        if changed := changes(run.settings(), settings, fingerprint != dataset.fingerprint):
            self.warn(f"Not as at the run's beginning: {', '.join(changed)}. It goes on, but not exactly.")
        trainer = Trainer(model, dataset, embedding, self.config, state, negative, pixel_loss)
        run.forget_after(trainer.step)
        run.save_settings({**run.settings(), **settings})
        return trainer, run

    def _check_cheaply(self) -> list[str]:
        """What can be refused before a model is loaded; the template's lines."""
        config = self.config
        for subset in subsets_of(self.host, self.images):
            find_images(subset.folder)
        if config.discriminator:
            path = entered_path(config.discriminator)
            self.host.check_folder(path if path.is_dir() else path.parent)
            discriminator.check(path)
        if config.preview_sampler and config.preview_sampler not in self.host.samplers:
            have = ", ".join(self.host.samplers) or "no choice here: leave it empty"
            message = (
                f"Preview sampling method: found {config.preview_sampler!r}, expected one of those that there are ({have})."
            )
            raise ConfigError(message, "preview_sampler")
        return load_template(config.template, self.host.template_dirs)

    def _run(
        self,
        trainer: Trainer,
        run: Run,
        watching: Sequence[Observer],
        files: Sequence[Path],
        should_stop: Callable[[], bool],
    ) -> str:
        reason = "failed"
        try:
            for event in trainer.run(should_stop):
                for observer in watching:
                    observer(event)
                if isinstance(event, Finished):
                    reason = event.reason
        except (TrainingError, OSError, torch.cuda.OutOfMemoryError) as error:
            raise TrainingError(failed_but_kept(error, files[0])) from error
        finally:
            trainer.make_finite()
            try:
                run.save_state(trainer.state(), trainer.dataset.fingerprint)
            finally:
                self._keep(trainer, run, files)
        return reason

    def _keep(self, trainer: Trainer, run: Run, files: Sequence[Path]) -> None:
        """Write the embeddings; TrainingError, which says where else they are, if that cannot be done."""
        copies = trainer.copies
        for each in copies:
            if not run.copy_file(each).exists():
                with suppress(OSError):  # whatever becomes of the copy, the embedding itself comes next
                    formats.write(each, run.copy_file(each))
        try:
            for embedding, file in zip(copies, files, strict=False):  # averages come last, and have no file
                embeddings_dir.save(embedding, file)
            if files[0].suffix == ".pt" and self.config.save_optimizer and len(files) == 1:
                formats.write_optimizer(files[0], copies[0], trainer.state().optimizer)
        except OSError as error:
            copy = run.copy_file(embedding)
            message = (
                f"{file} could not be written ({error.strerror}). What was learned is in {copy}; once that is "
                "mended, put this copy into the embeddings folder."
            )
            raise TrainingError(message) from error
        finally:
            self.host.embeddings_changed()

    def _settings(self, model: DiffusionModel, dataset: Dataset) -> dict[str, Any]:
        return {
            "version": __version__,
            "name": self.name,
            "images": str(self.images.resolve()),
            **({} if self.images.is_dir() else {"data_set": [each.to_dict() for each in dataset.subsets]}),
            "num_images": len(dataset.items),
            "skipped": [str(path.name) for path, _ in dataset.skipped],
            "model": model.name,
            "model_hash": model.checkpoint_hash,
            "model_kind": str(model.kind),
            "train": self.config.to_dict(),
        }


def _webui_state(file: Path, embedding: Embedding, model: DiffusionModel) -> TrainState | None:
    """The optimizer state that the WebUI, or we, left beside a .pt, if it belongs to these vectors."""
    optimizer = formats.read_optimizer(file, embedding) if file.suffix == ".pt" else None
    if optimizer is None:
        return None
    vectors = {encoder: each.to(model.device) for encoder, each in embedding.vectors.items()}
    return TrainState(embedding.step, 0, vectors, optimizer)


def failed_but_kept(error: Exception, file: Path) -> str:
    """The message for a run that went wrong: what, and what is left."""
    what = f"{error.strerror}: {error.filename}." if isinstance(error, OSError) and error.filename else error
    return f"{what} What was learned until then is in {file}."
