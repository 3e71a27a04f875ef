"""A session: one training run from opening the model to saving the results.

The command line and the page both use it. They follow it through callbacks and control it through `Controls`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from ti_trainer.config.training import TrainConfig
from ti_trainer.config.trials import check_resumable
from ti_trainer.data.dataset import Dataset
from ti_trainer.data.image_files import find_images
from ti_trainer.embedding import Embedding, negative_name
from ti_trainer.errors import StoppedError
from ti_trainer.formats import embeddings_dir
from ti_trainer.host import GenerationRequest, Host, Lease, ModelReference
from ti_trainer.lora import Lora
from ti_trainer.model import DiffusionModel, Vectors, check_fits
from ti_trainer.runs import finalize, locks
from ti_trainer.runs.builders import (
    dataset_of,
    described,
    facts_of,
    fit_memory,
    load_embeddings,
    model_options,
    pixel_loss_of,
    run_callbacks,
    settings_of,
    webui_state,
)
from ti_trainer.runs.callbacks import Callback, HostProgress
from ti_trainer.runs.checks import check_dataset, check_images, check_model, check_options, check_start, load_prompter
from ti_trainer.runs.controls import Controls, Result
from ti_trainer.runs.datasets import subsets_of, warnings_of
from ti_trainer.runs.early_stopping import KeepBest, verdict, with_validation_images
from ti_trainer.runs.generated import GeneratedImages
from ti_trainer.runs.health import Health
from ti_trainer.runs.integrity import back_up, check_unchanged, digest, digests, keep_changed
from ti_trainer.runs.run_folder import Run, changes
from ti_trainer.runs.start_notes import negative_mismatch, start_notes
from ti_trainer.runs.steps import compile_network, train_and_save
from ti_trainer.runs.teacher_lora import lora_of
from ti_trainer.training.distributed import ALONE, Processes
from ti_trainer.training.pixel_loss import PixelLoss
from ti_trainer.training.selection import trial_results
from ti_trainer.training.state import TrainState
from ti_trainer.training.trainer import Trainer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Prepared:
    """A session before its first step."""

    lease: Lease
    trainer: Trainer
    loaded: Sequence[tuple[Embedding, Path]]
    should_stop: Callable[[], bool]

    @property
    def files(self) -> list[Path]:
        """The files that the trained embeddings are written to."""
        return [embeddings_dir.trainable_file(file, len(each.vectors)) for each, file in self.loaded]

    @property
    def digests(self) -> dict[Path, str]:
        """The digests of the embedding files as they were read."""
        return {file: digest(each.vectors) for each, file in self.loaded}


@dataclass
class Session:
    """Train one embedding, in a new run or in the run `resume`.

    `images` is a folder of images, or a .toml file that lists such folders. `generated` images are made before the first
    step where they are missing. With `overwrite`, a run is resumed even if its embedding file was changed since; the
    changed file is backed up. A run with an `intended_model` is not trained with another one.
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
    generated: GeneratedImages | None = None
    intended_model: ModelReference | None = None

    def check(self) -> None:
        """Raise now what `train` would raise after a wait: errors of the options, the dataset, the embedding, the model."""
        self._check_options()
        loaded = load_embeddings(self.host.embeddings_dir, self.config, self.name)
        model = self.host.open_model(model_options(self.config))
        for each, _ in loaded:
            check_fits(model, each)
        if (lora := lora_of(self.host, self.config)) is not None:
            model.fit_lora(lora)
        if self.generated is None:
            check_dataset(self.host, self.name, self.images, self.config, model)
        check_start(self.config, model, loaded, self.resume, overwrite=self.overwrite)

    def train(
        self,
        callbacks: Callable[[Trainer, Run], Sequence[Callback]] = lambda trainer, run: (),
        controls: Controls | None = None,
        loading: Callable[[int, int], None] = lambda done, total: None,
        generating: Callable[[int, int], None] = lambda done, total: None,
    ) -> Result:
        """Train, and save the embedding also when stopped or when training fails.

        `loading` is called with the number of images read and their total, from when the host's lock is held; before that,
        `generating` with those of the images that are generated.

        Raises:
            StoppedError: stopped before the first step; nothing was written.
            TrainingError: training or saving failed. The message says where the results are.
        """
        controls = controls or Controls()
        with self._prepared(controls, loading, generating) as prepared, ExitStack() as locks_held:
            trainer, lease, files = prepared.trainer, prepared.lease, prepared.files
            run = self._folder(trainer, prepared.loaded)
            if self.resume is None:  # a run that is resumed is locked already
                locks_held.enter_context(locks.held(locks.of_run(run.path), "The run folder", self.warn))

            def generate(request: GenerationRequest, embeddings: Mapping[str, Vectors]) -> Image.Image:
                image = self.host.generate(trainer.model, request, embeddings)
                lease.show(image)
                return image

            requests, health = (controls.copy, controls.preview), Health(run, trainer, self.warn)
            stopping, rule = prepared.should_stop(), trainer.early_stopping
            keep_best = None if rule is None else KeepBest(run, trainer, rule, not self.config.evaluate_every, self.warn)
            all_callbacks: list[Callback] = [
                *callbacks(trainer, run),
                HostProgress(lease, trainer),
                *run_callbacks(self.config, trainer, run, generate, requests, self.warn, keep_best, stopping=stopping),
                health,
            ]
            compile_network(trainer, self.say, all_callbacks)
            save = partial(self._save_results, prepared, run)
            reason = train_and_save(trainer, run, all_callbacks, keep_best, prepared.should_stop, save, files[0], self.warn)
        embedding = trainer.result[0]
        finalize.draw_plots(run, files[0], embedding.step, self.warn)
        dataset, negative = trainer.dataset, files[1] if len(files) > 1 else None
        counts = (len(dataset.items), dataset.skipped)
        signs, trials = tuple(health.signs), trial_results(trainer)
        steps, found = (trainer.step, trainer.last_step), verdict(trainer)
        return Result(embedding, files[0], run, reason, *counts, negative, trials, signs, *steps, found)

    def follow(self, controls: Controls) -> None:
        """Train in a process other than process 0: compute a share of each update and write no files."""
        with self._prepared(controls) as prepared:
            compile_network(prepared.trainer, self.say)
            for _ in prepared.trainer.run(prepared.should_stop):
                pass

    @contextmanager
    def _prepared(
        self,
        controls: Controls,
        loading: Callable[[int, int], None] = lambda done, total: None,
        generating: Callable[[int, int], None] = lambda done, total: None,
    ) -> Iterator[_Prepared]:
        """Hold the host's lock with everything read and nothing written yet."""
        config, processes = self.config, self.processes
        with processes.together():
            self._check_options()
        with self.host.lock() as lease, ExitStack() as locks_held:

            def should_stop() -> bool:
                return controls.stop.is_set() or lease.interrupted()

            def still(report: Callable[[int, int], None], done: int, total: int) -> None:
                report(done, total)
                if should_stop():
                    message = "Stopped before the first step: nothing was changed."
                    raise StoppedError(message)

            still_loading = partial(still, loading)

            with processes.together() as facts:
                check_model(self.host, self.intended_model)  # another one may have been chosen while this run waited
                if processes.is_writer:
                    self._lock(locks_held)
                # Only now: the previous holder of the lock may have written the embedding.
                loaded = load_embeddings(self.host.embeddings_dir, config, self.name)
                mismatch = negative_mismatch(self.host.embeddings_dir, config, self.name, loaded)
                for message in filter(None, (*config.schedule_notes(), mismatch)):
                    self.warn(message)
                lora = lora_of(self.host, config)
                self._generate_missing(partial(still, generating), lora)
                subsets = subsets_of(self.host, self.images, self.warn)
                total = sum(len(find_images(subset.folder)) for subset in subsets)
                still_loading(0, total)
                model = self.host.open_model(model_options(config))
                prompter = load_prompter(self.host, self.name, config)
                if self.resume is None:  # a resumed run gave these warnings at its start
                    for warning in warnings_of(config, model, loaded[0][0], prompter, subsets):
                        self.warn(warning)
                dataset = dataset_of(config, model, prompter, subsets, still_loading)
                dataset = with_validation_images(config, dataset, self.resume)
                still_loading(total, total)
                pixel_loss = pixel_loss_of(config, model.device, torchscript=self.host.torchscript)
                summary = fit_memory(config, model, dataset, pixel_loss)
                about_lora = "" if lora is None else model.fit_lora(lora)
                trainer = self._trainer(model, dataset, loaded, pixel_loss, lora)
                for note in filter(None, (about_lora, summary, *start_notes(trainer, loaded[0][0]))):
                    self.say(note)
                if processes.size > 1:
                    facts |= facts_of(trainer)
            processes.meet_on(model.device)
            yield _Prepared(lease, trainer, loaded, should_stop)

    def _generate_missing(self, progress: Callable[[int, int], None], lora: Lora | None) -> None:
        """Generate the images that the run needs and that are missing, with the LoRA that it learns from."""
        if self.generated is not None:
            model = self.host.open_model(model_options(self.config))
            with nullcontext() if lora is None else model.with_lora(lora, self.config.teacher_lora_weight):
                self.generated.generate(self.host, model, progress)

    def _lock(self, locks_held: ExitStack) -> None:
        """Lock the embeddings and the run to resume; ConfigError if another process is training one of them."""
        if self.resume is not None:
            run = self.resume
            locks_held.enter_context(locks.held(locks.of_run(run.path), f"The run {run.id}", self.warn))
        names = (self.name, negative_name(self.name))[: 2 if self.config.trains_negative else 1]
        locks_held.enter_context(locks.embeddings_held(self.host.embeddings_dir, names, self.warn))

    def _trainer(
        self,
        model: DiffusionModel,
        dataset: Dataset,
        loaded: Sequence[tuple[Embedding, Path]],
        pixel_loss: PixelLoss | None,
        lora: Lora | None,
    ) -> Trainer:
        """The trainer, with the state of the run to resume."""
        embedding, *others = (described(each, model, dataset, self.config) for each, _ in loaded)
        negative = others[0] if others else None
        state: TrainState | None = None
        if self.resume is None and negative is None:
            state = webui_state(loaded[0][1], embedding, model, self.config)
        elif self.resume is not None:
            check_resumable(self.resume.settings().get("train", {}), self.config)
            state, fingerprint = self.resume.load_state()
            settings = settings_of(self.config, self.name, self.images, model, dataset, lora)
            if changed := changes(self.resume.settings(), settings, fingerprint != dataset.fingerprint):
                self.warn(f"Changed since the run was started: {', '.join(changed)}. It is resumed, but not exactly.")
        trainer = Trainer(model, dataset, embedding, self.config, state, negative, pixel_loss, self.processes, lora)
        if self.resume is not None and state is not None:
            if not self.overwrite:
                check_unchanged(self.resume, state, loaded)
            if self.processes.is_writer:
                keep_changed(self.resume, state, loaded, self.warn)
        return trainer

    def _folder(self, trainer: Trainer, loaded: Sequence[tuple[Embedding, Path]]) -> Run:
        """Create the run folder, or bring the one to resume back to its saved step."""
        settings = settings_of(self.config, self.name, self.images, trainer.model, trainer.dataset, trainer.lora)
        settings["embedding_files"] = digests([each for each, _ in loaded])
        if self.resume is None:
            run = Run.create(self.host.log_dir, self.name, settings)
        else:
            run = self.resume
            run.forget_after(trainer.step, self.warn)
            run.save_settings({**run.settings(), **settings})
        for _, file in loaded if self.host.is_public else ():  # visitors may train what others made, but not destroy it
            back_up(file, run)
        return run

    def _check_options(self) -> None:
        self.processes.check(self.config.gradient_accumulation_steps)
        if self.generated is None:
            check_images(self.host, self.images)
        check_options(self.host, self.name, self.config)

    def _save_results(self, prepared: _Prepared, run: Run) -> list[str]:
        trainer, save_optimizer = prepared.trainer, self.config.save_optimizer
        try:
            return finalize.save_results(
                trainer, run, prepared.files, prepared.digests, self.warn, save_optimizer=save_optimizer
            )
        finally:
            self.host.embeddings_changed()
