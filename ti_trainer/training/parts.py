"""What a run consists of, each made of the run's options. Knows no host and no order of things."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Event as Flag

import torch

from ti_trainer.config import TrainConfig
from ti_trainer.data.dataset import Dataset, load_dataset
from ti_trainer.data.images import frame_of
from ti_trainer.data.prompts import NAME, Prompter
from ti_trainer.data.subsets import Subset
from ti_trainer.embedding import negative_name
from ti_trainer.files import entered_path
from ti_trainer.host import Drawing, ModelOptions
from ti_trainer.model import DiffusionModel
from ti_trainer.training import discriminator
from ti_trainer.training.guidance import GuidanceScale
from ti_trainer.training.observers import (
    Copies,
    Draw,
    Evaluation,
    LossTable,
    Observer,
    Previews,
    StateKeeper,
    TensorBoardLog,
)
from ti_trainer.training.pixels import PixelLoss
from ti_trainer.training.run import Run
from ti_trainer.training.trainer import Trainer


def model_options(config: TrainConfig) -> ModelOptions:
    """How a run with these options opens its model."""
    return ModelOptions(config.precision, config.clip_skip, config.prediction_type, config.zero_terminal_snr)


def dataset_of(
    config: TrainConfig,
    name: str,
    model: DiffusionModel,
    template: Sequence[str],
    subsets: Sequence[Subset],
    loading: Callable[[int, int], None],
    warn: Callable[[str], None],
) -> Dataset:
    """Read and encode the pictures."""
    return load_dataset(
        subsets,
        model,
        frame_of(config, model.default_size_px),
        Prompter(
            name,
            template,
            config.shuffle_tags,
            config.tag_dropout,
            negative_name(name) if config.negative else "",
            config.positive_filewords_only,
        ),
        seed=config.seed,
        repeats=config.repeats,
        latent_sampling=config.latent_sampling,
        word_regex=config.filename_word_regex,
        join_string=config.filename_join_string,
        prior_loss_weight=config.prior_loss_weight,
        mask_outside=config.mask_outside,
        normalize_masks=config.normalize_masks,
        keep_pixels=config.reconstruction_weight > 0,
        progress=loading,
        warn=warn,
    )


def pixel_loss_of(config: TrainConfig, device: torch.device) -> PixelLoss | None:
    """What compares pixels, if anything does; ConfigError for a discriminator that is none."""
    judges = ()
    if config.discriminator and config.discriminator_weight:
        judge = discriminator.load(entered_path(config.discriminator), config.discriminator_class, device)
        judges = ((config.discriminator_weight, judge),)
    return PixelLoss(config.reconstruction_weight, judges) if config.reconstruction_weight or judges else None


def drawing_of(config: TrainConfig, name: str) -> Drawing:
    """What previews show; a DreamArtist run's at the scale of training."""
    return Drawing(
        config.preview_prompt.replace(NAME, name),
        config.preview_negative_prompt.replace(NAME, name),
        config.preview_sampling_steps,
        GuidanceScale.parse(config.train_cfg_scale).high if config.negative else config.preview_cfg_scale,
        config.preview_seed,
        config.preview_width or config.width,
        config.preview_height or config.height,
        config.preview_sampler,
    )


def writers_of(
    config: TrainConfig,
    trainer: Trainer,
    run: Run,
    draw: Draw,
    asked: tuple[Flag, Flag],
    warn: Callable[[str], None],
    *,
    ending: bool,
) -> list[Observer]:
    """All that writes into the run's folder; what is asked for is a copy and a preview.

    Before the first step the preview is drawn and the loss measured, but if it is `ending` already.
    """
    copy_now, preview_now = asked
    writers: list[Observer] = []
    if config.csv_every:
        writers.append(LossTable(run, config.csv_every))
    writers.append(Copies(run, trainer, config.save_every, copy_now))
    if config.tensorboard:
        writers.append(TensorBoardLog(run.path / "tensorboard", max(1, config.csv_every)))

    drawing = drawing_of(config, trainer.embedding_name)
    previews = Previews(run, trainer, draw, drawing, config.preview_every, config.save_cards, preview_now, warn)
    if config.preview_every and not ending:
        previews.before(f"a photo of {trainer.embedding_name}")
    writers.append(previews)
    if config.evaluate_every:
        evaluation = Evaluation(run, trainer, config.evaluate_every, warn=warn)
        if not ending and not run.deterministic():
            evaluation.before()
        writers.append(evaluation)
    # The state comes last: what goes on from it does not write anything of its step again.
    return [*writers, StateKeeper(run, trainer, config.state_every, config.state_every_s, trainer.dataset.fingerprint)]
