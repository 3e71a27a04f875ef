"""A training from beginning to end: open, prepare, run, write. What the command line and the page both call.

Knows nothing of either: they watch through observers and stop it through `should_stop`.
"""

from __future__ import annotations

import glob
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ti_trainer import __version__, embeddings_dir, formats
from ti_trainer.config import TrainConfig
from ti_trainer.data.dataset import Dataset, load_dataset
from ti_trainer.data.images import Frame, find_images
from ti_trainer.data.prompts import NAME, Prompter, load_template
from ti_trainer.embedding import Embedding
from ti_trainer.errors import TrainingError
from ti_trainer.files import atomic
from ti_trainer.host import Drawing, Host
from ti_trainer.model import DiffusionModel
from ti_trainer.training.observers import Copies, LossTable, Observer, Previews, StateKeeper, TensorBoardLog, plot_losses
from ti_trainer.training.run import Run
from ti_trainer.training.trainer import Finished, Trainer, TrainState

log = logging.getLogger(__name__)
DECISIVE = (  # options that make another run of it when they change; rates, limits and what is written may change
    *("seed", "batch_size", "gradient_accumulation_steps", "repeats", "latent_sampling"),
    *("template", "shuffle_tags", "tag_dropout", "clip_skip", "precision"),
)


@dataclass(frozen=True)
class Result:
    """What a training left behind."""

    embedding: Embedding
    embedding_file: Path
    run: Run
    reason: str
    dataset: Dataset


@dataclass
class Session:
    """One training of one embedding on one folder of pictures."""

    host: Host
    name: str
    images: Path
    config: TrainConfig
    resume: bool = False

    def train(
        self,
        observers: Callable[[Trainer], Sequence[Observer]] = lambda trainer: (),
        should_stop: Callable[[], bool] = lambda: False,
        loading: Callable[[int, int], None] = lambda done, total: None,
    ) -> Result:
        """Train and write the embedding, also when stopped. On TrainingError what was learned before it is written first."""
        config = self.config
        find_images(self.images)  # what can be refused cheaply comes before a model is loaded
        template = load_template(config.template)
        embedding, file = embeddings_dir.load(self.host.embeddings_dir, self.name)
        run, state, fingerprint = self._earlier() if self.resume else (None, None, "")
        with self.host.lock():
            model = self.host.open_model(config.precision, config.clip_skip)
            dataset = self._dataset(model, template, loading)
            embedding = replace(
                embedding,
                checkpoint=model.name,
                checkpoint_hash=model.checkpoint_hash,
                info={**embedding.info, "num_images": len(dataset.items), "ti_trainer": __version__},
            )
            settings = self._settings(model, dataset)
            if state is None:
                state = _webui_state(file, embedding, model)
            elif changed := _changes(run.settings(), settings, fingerprint != dataset.fingerprint):
                log.warning("Not as at the run's beginning: %s. It goes on, but not exactly.", ", ".join(changed))
            trainer = Trainer(model, dataset, embedding, config, state)
            if run is None:
                run = Run.create(self.host.log_dir, self.name, settings)
            else:
                run.forget_after(trainer.step)
                run.save_settings({**run.settings(), **settings})
            file = file if file.suffix in embeddings_dir.TRAINABLE else file.with_suffix(".safetensors")
            reason = self._run(trainer, run, [*observers(trainer), *self._writers(trainer, run, model)], file, should_stop)
        plot_losses(run)
        before_and_after(run, self.name)
        return Result(trainer.embedding, file, run, reason, dataset)

    def _run(
        self, trainer: Trainer, run: Run, watching: Sequence[Observer], file: Path, should_stop: Callable[[], bool]
    ) -> str:
        reason = "failed"
        try:
            for event in trainer.run(should_stop):
                for observer in watching:
                    observer(event)
                if isinstance(event, Finished):
                    reason = event.reason
        except (TrainingError, OSError, torch.cuda.OutOfMemoryError) as error:
            raise TrainingError(failed_but_kept(error, file)) from error
        finally:
            trainer.make_finite()
            embedding = trainer.embedding
            formats.write(embedding, file)
            if file.suffix == ".pt":
                formats.write_optimizer(file, embedding, trainer.state().optimizer)
            run.save_state(trainer.state(), trainer.dataset.fingerprint)
            self.host.embeddings_changed()
        return reason

    def _writers(self, trainer: Trainer, run: Run, model: DiffusionModel) -> list[Observer]:
        config = self.config
        writers: list[Observer] = []
        if config.csv_every:
            writers.append(LossTable(run, config.csv_every))
        if config.save_every:
            writers.append(Copies(run, trainer, config.save_every))
        if config.tensorboard:
            writers.append(TensorBoardLog(run.path / "tensorboard", max(1, config.csv_every)))
        if config.preview_every:
            previews = Previews(
                run,
                trainer,
                lambda drawing, words: self.host.draw(model, drawing, words),
                Drawing(
                    config.preview_prompt.replace(NAME, self.name),
                    config.preview_negative_prompt,
                    config.preview_sampling_steps,
                    config.preview_cfg_scale,
                    config.preview_seed,
                    config.width,
                    config.height,
                ),
                config.preview_every,
                config.save_cards,
            )
            previews.before(f"a photo of {self.name}")
            writers.append(previews)
        # The state comes last: what goes on from it does not write anything of its step again.
        return [*writers, StateKeeper(run, trainer, config.state_every, config.state_every_s, trainer.dataset.fingerprint)]

    def _dataset(self, model: DiffusionModel, template: Sequence[str], loading: Callable[[int, int], None]) -> Dataset:
        config = self.config
        size = (config.width or model.default_size_px, config.height or model.default_size_px)
        return load_dataset(
            self.images,
            model,
            Frame(None if config.do_not_resize else size, config.use_alpha_weight),
            Prompter(self.name, template, config.shuffle_tags, config.tag_dropout),
            seed=config.seed,
            repeats=config.repeats,
            latent_sampling=config.latent_sampling,
            word_regex=config.filename_word_regex,
            join_string=config.filename_join_string,
            progress=loading,
        )

    def _earlier(self) -> tuple[Run, TrainState, str]:
        run = Run.latest(self.host.log_dir, self.name)
        return (run, *run.load_state())

    def _settings(self, model: DiffusionModel, dataset: Dataset) -> dict[str, Any]:
        return {
            "version": __version__,
            "name": self.name,
            "images": str(self.images.resolve()),
            "num_images": len(dataset.items),
            "skipped": [str(path.name) for path, _ in dataset.skipped],
            "model": model.name,
            "model_hash": model.checkpoint_hash,
            "train": self.config.to_dict(),
        }


def _changes(before: dict[str, Any], now: dict[str, Any], other_pictures: bool) -> list[str]:
    """What makes a resumed run differ from one that was not interrupted."""
    changed = ["pictures or captions"] if other_pictures else []
    if before.get("model_hash") != now["model_hash"]:
        changed.append("model")
    then = before.get("train", {})
    return changed + [name for name in DECISIVE if then.get(name) != now["train"][name]]


def _webui_state(file: Path, embedding: Embedding, model: DiffusionModel) -> TrainState | None:
    """The optimizer state that the WebUI, or we, left beside a .pt, if it belongs to these vectors."""
    optimizer = formats.read_optimizer(file, embedding) if file.suffix == ".pt" else None
    if optimizer is None:
        return None
    vectors = {encoder: each.to(model.device) for encoder, each in embedding.vectors.items()}
    return TrainState(embedding.step, 0, vectors, optimizer)


def before_and_after(run: Run, name: str) -> Path | None:
    """before_after.png: the first preview beside the last, if there are two."""
    pictures = sorted(run.path.glob(f"images/{glob.escape(name)}-*.png"), key=lambda path: int(path.stem.rsplit("-", 1)[1]))
    if len(pictures) < 2:
        return None
    first, last = (Image.open(path).convert("RGB") for path in (pictures[0], pictures[-1]))
    scale = max(1, 256 // first.width)
    sides = [each.resize((each.width * scale, each.height * scale), Image.Resampling.NEAREST) for each in (first, last)]
    both = Image.new("RGB", (sides[0].width + sides[1].width + 8, max(side.height for side in sides)), "white")
    both.paste(sides[0], (0, 0))
    both.paste(sides[1], (sides[0].width + 8, 0))
    path = run.path / "before_after.png"
    with atomic(path) as new:
        both.save(new)
    return path


def failed_but_kept(error: Exception, file: Path) -> str:
    """The message for a run that went wrong: what, and what is left."""
    what = f"{error.strerror}: {error.filename}." if isinstance(error, OSError) and error.filename else error
    return f"{what} What was learned until then is in {file}."
