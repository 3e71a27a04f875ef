"""A training from beginning to end: open, prepare, run, write. What the command line and the page both call.

Knows nothing of either: they watch through observers and say what they want through `Controls`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image

from ti_trainer import __version__
from ti_trainer.config.training import TrainConfig
from ti_trainer.config.trials import check_resumable
from ti_trainer.data.dataset import Dataset
from ti_trainer.data.image_files import find_images
from ti_trainer.data.images import frame_of
from ti_trainer.data.plan import Captions, plan
from ti_trainer.data.prompts import Prompter, load_plain, load_template
from ti_trainer.embedding import Embedding, negative_name
from ti_trainer.errors import ConfigError, StoppedError, TrainingError
from ti_trainer.files import checked_length, entered_path
from ti_trainer.formats import embeddings_dir
from ti_trainer.functional import optimizers
from ti_trainer.host import GenerationRequest, Host, Lease
from ti_trainer.model import DiffusionModel, Vectors, check_fits
from ti_trainer.runs import finalize, locks
from ti_trainer.runs.builders import (
    apart,
    dataset_of,
    facts_of,
    model_options,
    pixel_loss_of,
    prompter_of,
    settings_of,
    webui_state,
    words_of,
    writers_of,
)
from ti_trainer.runs.callbacks import Callback, HostProgress
from ti_trainer.runs.controls import Controls, Result
from ti_trainer.runs.datasets import subsets_of, warnings_of
from ti_trainer.runs.health import Health
from ti_trainer.runs.replaced import check_unchanged, digest, digests, keep_changed
from ti_trainer.runs.run_folder import Run, changes
from ti_trainer.runs.trials import evaluate_trials_at_end
from ti_trainer.training import discriminator
from ti_trainer.training.distributed import ALONE, Processes
from ti_trainer.training.events import Compiling, Finished, MemoryReduced, TrialStopped
from ti_trainer.training.pixel_loss import PixelLoss, latent_pixels_at_once
from ti_trainer.training.selection import trial_results
from ti_trainer.training.trainer import Trainer
from ti_trainer.training.trials import check_starts, check_steps

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Begun:
    """A training before its first step."""

    lease: Lease
    trainer: Trainer
    loaded: Sequence[tuple[Embedding, Path]]
    should_stop: Callable[[], bool]

    @property
    def files(self) -> list[Path]:
        """Where what is learned goes."""
        return [embeddings_dir.trainable_file(file, len(each.vectors)) for each, file in self.loaded]

    @property
    def known(self) -> dict[Path, str]:
        """What was in these files, by digests."""
        return {file: digest(each.vectors) for each, file in self.loaded}


@dataclass
class Session:
    """One training of one embedding, or the rest of the run `resume`.

    `images` is a folder of images, or a .toml file that lists some. `overwrite`: what was done to the embedding since the
    run was at work does not keep it from going on; a copy of that is kept.
    """

    host: Host
    name: str
    images: Path
    config: TrainConfig
    resume: Run | None = None
    warn: Callable[[str], None] = log.warning
    say: Callable[[str], None] = log.info
    processes: Processes = ALONE
    overwrite: bool = False

    def check(self) -> None:
        """Refuse at once what would be refused later: the folder, the template, the embedding, and its fit to the model."""
        self._check_cheaply()
        loaded = words_of(self.host.embeddings_dir, self.config, self.name)
        model = self.host.open_model(model_options(self.config))
        for each, _ in loaded:
            check_fits(model, each)
        frame_of(self.config, model.default_size_px)
        captions = Captions(self._prompter(), self.config.filename_word_regex, self.config.filename_join_string)
        plan(subsets_of(self.host, self.images), model, captions, lambda said: None)
        if self.resume is None:
            check_starts(self.config, loaded[0][0])
        begun_on = self.resume.settings().get("model", model.name) if self.resume else model.name
        if begun_on != model.name:
            message = f"This run was begun on {begun_on}, and {model.name} is loaded now: choose {begun_on} again to go on."
            raise ConfigError(message)
        check_steps(self.name, self.resume.step if self.resume else loaded[0][0].step, self.config)
        if self.resume is not None and not self.overwrite:
            check_unchanged(self.resume, self.resume.load_state()[0], loaded)

    def train(
        self,
        callbacks: Callable[[Trainer, Run], Sequence[Callback]] = lambda trainer, run: (),
        controls: Controls | None = None,
        loading: Callable[[int, int], None] = lambda done, total: None,
    ) -> Result:
        """Train and write the embedding, also when stopped. On TrainingError what was learned before it is written first.

        StoppedError if that comes before the first step.

        `loading` is told how many images are read, of how many, from when it is our turn with the host.
        """
        controls = controls or Controls()
        with self._begun(controls, loading) as begun, ExitStack() as locks_held:
            trainer, lease, files = begun.trainer, begun.lease, begun.files
            run = self._folder(trainer, begun.loaded)
            if self.resume is None:  # one that goes on is held already
                locks_held.enter_context(locks.held(locks.of_run(run.path), "The run's folder", self.warn))

            def generate(request: GenerationRequest, words: Mapping[str, Vectors]) -> Image.Image:
                image = self.host.generate(trainer.model, request, words)
                lease.show(image)
                return image

            asked, health = (controls.copy, controls.preview), Health(run, trainer, self.warn)
            watching = [
                *callbacks(trainer, run),
                HostProgress(lease, trainer),
                *writers_of(self.config, trainer, run, generate, asked, self.warn, ending=begun.should_stop()),
                health,
            ]
            self._compile(trainer, watching)
            reason = self._run(begun, run, watching)
        finalize.draw_figures(run, files[0], self.warn)
        dataset, negative = trainer.dataset, files[1] if len(files) > 1 else None
        return Result(
            trainer.embedding,
            files[0],
            run,
            reason,
            len(dataset.items),
            dataset.skipped,
            negative,
            trial_results(trainer),
            tuple(health.signs),
        )

    def follow(self, controls: Controls) -> None:
        """What `train` is in a process that does not write: its own parts of each update, and not a file."""
        with self._begun(controls) as begun:
            self._compile(begun.trainer)
            for _ in begun.trainer.run(begun.should_stop):
                pass

    @contextmanager
    def _begun(self, controls: Controls, loading: Callable[[int, int], None] = lambda done, total: None) -> Iterator[_Begun]:
        """Our turn with the host, all read that is needed, nothing written yet."""
        config, processes = self.config, self.processes
        with processes.together():
            self._check_cheaply()
        with self.host.lock() as lease, ExitStack() as locks_held:

            def should_stop() -> bool:
                return controls.stop.is_set() or lease.interrupted()

            def still_loading(done: int, total: int) -> None:
                loading(done, total)
                if should_stop():
                    message = "Stopped before the first step: nothing was changed."
                    raise StoppedError(message)

            with processes.together() as facts:
                if processes.is_writer:
                    self._hold(locks_held)
                for said in config.schedule_notes():
                    self.warn(said)
                # Not before: somebody else's turn may have made it anew.
                loaded = words_of(self.host.embeddings_dir, config, self.name)
                if said := apart(self.host.embeddings_dir, config, self.name, loaded):
                    self.warn(said)
                subsets = subsets_of(self.host, self.images, self.warn)
                total = sum(len(find_images(subset.folder)) for subset in subsets)
                still_loading(0, total)
                model = self.host.open_model(model_options(config))
                prompter = self._prompter()
                # A run that goes on said it at its beginning.
                for said in [] if self.resume else warnings_of(config, model, loaded[0][0], prompter, subsets):
                    self.warn(said)
                dataset = dataset_of(config, model, prompter, subsets, still_loading)
                still_loading(total, total)
                largest = max(item.latents[0].numel() for item in dataset.items)
                pixel_loss = pixel_loss_of(config, model.device, torchscript=self.host.torchscript)
                at_once = config.batch_size * config.trials
                decoded = 0 if pixel_loss is None else latent_pixels_at_once(at_once, largest)
                places = (2 if config.negative else 1) * at_once * largest
                if said := model.fit_memory(places, decoded, config.memory):
                    self.say(said)
                trainer = self._trainer(model, dataset, loaded, pixel_loss)
                if processes.size > 1:
                    facts |= facts_of(trainer)
            processes.meet_on(model.device)
            yield _Begun(lease, trainer, loaded, should_stop)

    def _hold(self, locks_held: ExitStack) -> None:
        """Nobody else trains this embedding, or goes on with this run, meanwhile; ConfigError if somebody does already."""
        if self.resume is not None:
            run = self.resume
            locks_held.enter_context(locks.held(locks.of_run(run.path), f"The run {run.id}", self.warn))
        names = (self.name, negative_name(self.name))[: 2 if self.config.negative else 1]
        locks_held.enter_context(locks.embeddings_held(self.host.embeddings_dir, names, self.warn))

    def _trainer(
        self,
        model: DiffusionModel,
        dataset: Dataset,
        loaded: Sequence[tuple[Embedding, Path]],
        pixel_loss: PixelLoss | None,
    ) -> Trainer:
        """The trainer, where the run to go on with has come to."""
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
        if self.resume is None:
            state = None if negative is not None else webui_state(loaded[0][1], embedding, model, self.config)
        else:
            check_resumable(self.resume.settings().get("train", {}), self.config)
            state, fingerprint = self.resume.load_state()
            settings = settings_of(self.config, self.name, self.images, model, dataset)
            if changed := changes(self.resume.settings(), settings, fingerprint != dataset.fingerprint):
                self.warn(f"Not as at the run's beginning: {', '.join(changed)}. It goes on, but not exactly.")
        trainer = Trainer(model, dataset, embedding, self.config, state, negative, pixel_loss, self.processes)
        if self.resume is not None and not self.overwrite:
            check_unchanged(self.resume, state, loaded)
        if self.resume is not None and self.processes.is_writer:
            keep_changed(self.resume, state, loaded, self.warn)
        return trainer

    def _compile(self, trainer: Trainer, watching: Sequence[Callback] = ()) -> None:
        """The network, if that is wanted; who watches is told when a step takes longer for it."""

        def begins() -> None:
            for callback in watching:
                callback(Compiling(trainer.step))

        sizes = len({item.latents.shape for item in trainer.dataset.items})
        if said := trainer.model.compile(self.config.compile, trainer.last_step - trainer.step, sizes, begins):
            self.say(said)

    def _folder(self, trainer: Trainer, loaded: Sequence[tuple[Embedding, Path]]) -> Run:
        """The run's folder, as it is to be before the first step."""
        settings = settings_of(self.config, self.name, self.images, trainer.model, trainer.dataset)
        settings["embedding_files"] = digests([each for each, _ in loaded])
        if self.resume is None:
            return Run.create(self.host.log_dir, self.name, settings)
        self.resume.forget_after(trainer.step, self.warn)
        self.resume.save_settings({**self.resume.settings(), **settings})
        return self.resume

    def _check_cheaply(self) -> None:
        """What can be refused before a model is loaded."""
        config = self.config
        checked_length(self.name)
        self.processes.check(config.gradient_accumulation_steps)
        for subset in subsets_of(self.host, self.images):
            find_images(subset.folder)
        optimizers.check_available(config.optimizer)
        if config.discriminator:
            path = entered_path(config.discriminator)
            self.host.check_folder(path if path.is_dir() else path.parent)
            discriminator.check(path, torchscript=self.host.torchscript)
        if config.preview_sampler and config.preview_sampler not in self.host.samplers:
            have = ", ".join(self.host.samplers) or "no choice here: leave it empty"
            message = (
                f"Preview sampling method: found {config.preview_sampler!r}, expected one of those that there are ({have})."
            )
            raise ConfigError(message, "preview_sampler")
        self._prompter()

    def _prompter(self) -> Prompter:
        """What makes the prompts; ConfigError for a template that cannot."""
        folders = self.host.template_dirs
        template, plain = load_template(self.config.template, folders), load_plain(self.config.template, folders)
        return prompter_of(self.config, self.name, template, plain)

    def _run(self, begun: _Begun, run: Run, watching: Sequence[Callback]) -> str:
        """Train, and keep what was learned however that ends."""
        try:
            reason = self._steps(begun, run, watching)
        except (TrainingError, OSError, torch.cuda.OutOfMemoryError) as error:
            raise TrainingError(finalize.failed(error, self._keep(begun, run), begun.files[0])) from error
        except BaseException:
            for problem in self._keep(begun, run):
                self.warn(problem)
            raise
        if problems := self._keep(begun, run):
            raise TrainingError(finalize.failed(None, problems, begun.files[0]))
        return reason

    def _steps(self, begun: _Begun, run: Run, watching: Sequence[Callback]) -> str:
        reason = "failed"
        for event in begun.trainer.run(begun.should_stop):
            for callback in watching:
                callback(event)
            if isinstance(event, MemoryReduced | TrialStopped):
                self.warn(event.message)
            elif isinstance(event, Finished):
                reason = event.reason
        evaluate_trials_at_end(begun.trainer, run, self.warn)
        return reason

    def _keep(self, begun: _Begun, run: Run) -> list[str]:
        save_optimizer = self.config.save_optimizer
        try:
            return finalize.keep(begun.trainer, run, begun.files, begun.known, self.warn, save_optimizer=save_optimizer)
        finally:
            self.host.embeddings_changed()
