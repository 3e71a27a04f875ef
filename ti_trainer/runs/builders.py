"""What a run consists of, each made of the run's options. Knows no host and no order of things."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event as Flag
from typing import Any

import torch

from ti_trainer import __version__
from ti_trainer.config.training import TrainConfig
from ti_trainer.data.dataset import Dataset
from ti_trainer.data.images import frame_of
from ti_trainer.data.loading import DatasetOptions, load_dataset
from ti_trainer.data.prompts import NAME, Prompter
from ti_trainer.data.subsets import Subset
from ti_trainer.embedding import Embedding, dreamartist_name, negative_name
from ti_trainer.errors import ConfigError
from ti_trainer.files import entered_path
from ti_trainer.formats import embeddings_dir, webui_optimizer
from ti_trainer.host import GenerationRequest, ModelOptions
from ti_trainer.model import DiffusionModel
from ti_trainer.prompts import escaped
from ti_trainer.runs.callbacks import (
    Callback,
    Copies,
    Evaluation,
    FinalEvaluation,
    Generate,
    LossTable,
    Previews,
    StateKeeper,
    TensorBoardLog,
    Tolerated,
)
from ti_trainer.runs.run_folder import Run
from ti_trainer.training import discriminator
from ti_trainer.training.pixel_loss import PixelLoss
from ti_trainer.training.state import TrainState, for_trials
from ti_trainer.training.trainer import Trainer


def model_options(config: TrainConfig) -> ModelOptions:
    """How a run with these options opens its model."""
    return ModelOptions(config.precision, config.clip_skip, config.prediction_type, config.zero_terminal_snr)


def words_of(folder: Path, config: TrainConfig, name: str) -> list[tuple[Embedding, Path]]:
    """The embedding, and the negative one if it is trained too, with their files; ConfigError if one is not there."""
    loaded = [embeddings_dir.load(folder, name)]
    if config.negative:
        negative = negative_name(name)
        if embeddings_dir.find_negative(folder, name) is None:
            message = (
                f"There is no embedding {negative!r} in {folder}, the negative of {name!r}: create {negative!r}, of some 6 "
                "vectors, as an embedding of its own, or turn DreamArtist off."
            )
            raise ConfigError(message, "negative")
        loaded.append(embeddings_dir.load_negative(folder, name))
    return loaded


def apart(folder: Path, config: TrainConfig, name: str, loaded: Sequence[tuple[Embedding, Path]]) -> str:
    """What to say if a word and its negative no longer belong together."""
    negative = negative_name(name)
    if not config.negative and embeddings_dir.find(folder, negative) is not None:
        return f"{negative} is there, but Train with DreamArtist is off: only {name} is trained."
    if config.negative and embeddings_dir.find(folder, negative) is None:
        return f"{negative} begins as DreamArtist's own {dreamartist_name(name)}, which is left as it is."
    steps = [each.step for each, _ in loaded]
    if len(set(steps)) > 1:
        return f"{name} is at step {steps[0]} and {negative} at {steps[1]}: they were not made together."
    return ""


def webui_state(file: Path, embedding: Embedding, model: DiffusionModel, config: TrainConfig) -> TrainState | None:
    """The optimizer state that the WebUI, or we, left beside a .pt, if it belongs to these vectors; for every trial."""
    if config.trial_init_texts or config.trial_vectors:
        return None  # an embedding that may begin as something else was not trained yet
    if config.optimizer != "adamw":
        return None  # the WebUI has no other
    optimizer = webui_optimizer.read_optimizer(file, embedding) if file.suffix == ".pt" else None
    if optimizer is None:
        return None
    vectors = {encoder: each.to(model.device) for encoder, each in embedding.vectors.items()}
    own_groups = {"state": optimizer["state"]}  # the file's would bring its learning rate and weight decay
    return for_trials(TrainState(embedding.step, 0, vectors, (own_groups,)), config.trials)


def settings_of(config: TrainConfig, name: str, images: Path, model: DiffusionModel, dataset: Dataset) -> dict[str, Any]:
    """What a run's settings.json says."""
    subsets = [each.to_dict() for each in dataset.subsets]
    return {
        "version": __version__,
        "name": name,
        "images": str(images.resolve()),
        **({} if subsets == [{"image_dir": str(images)}] else {"dataset": subsets}),
        "num_images": len(dataset.items),
        "skipped": [str(path.name) for path, _ in dataset.skipped],
        "model": model.name,
        "model_hash": model.checkpoint_hash,
        "model_spec": str(model.spec),
        "train": config.to_dict(),
    }


def prompter_of(config: TrainConfig, name: str, template: Sequence[str], plain: Sequence[str]) -> Prompter:
    """What makes the prompts; `plain` are the template's lines for images without a caption."""
    return Prompter(
        name,
        template,
        config.shuffle_tags,
        config.tag_dropout,
        negative_name(name) if config.negative else "",
        config.positive_filewords_only,
        plain,
    )


def dataset_of(
    config: TrainConfig,
    model: DiffusionModel,
    prompter: Prompter,
    subsets: Sequence[Subset],
    loading: Callable[[int, int], None],
) -> Dataset:
    """Read and encode the images; what there is to warn of, `datasets.warnings_of` said before."""
    return load_dataset(
        subsets,
        model,
        frame_of(config, model.default_size_px),
        prompter,
        DatasetOptions.of(config),
        progress=loading,
        warn=lambda said: None,
    )


def facts_of(trainer: Trainer) -> dict[str, str]:
    """What has to be the same in all processes that train together. Latents are not among it: GPUs differ in last bits."""
    model, state = trainer.model, trainer.state()
    images = [
        (each.path.name, each.caption, tuple(each.latents.shape), each.subset.weight, each.subset.is_reg, each.repeats)
        for each in trainer.dataset.items
    ]
    vectors = b"".join(each.cpu().numpy().tobytes() for each in state.vectors.values())
    facts = {
        "dataset": images,
        "set of options": {**trainer.config.to_dict(), "memory": trainer.config.memory == "8bit"},  # others change no number
        "state of the embedding": (state.step, state.micro_step, vectors),
        "model": model.checkpoint_hash,
        "kind of device": (model.device.type, model.needs_loss_scaling),
    }
    return {name: hashlib.sha256(repr(fact).encode()).hexdigest()[:16] for name, fact in facts.items()}


def pixel_loss_of(config: TrainConfig, device: torch.device, *, torchscript: bool) -> PixelLoss | None:
    """What compares pixels, if anything does; ConfigError for a discriminator that is none, or not allowed."""
    judges = ()
    if config.discriminator and config.discriminator_weight:
        path = entered_path(config.discriminator)
        judge = discriminator.load(path, config.discriminator_class, device, torchscript=torchscript)
        judges = ((config.discriminator_weight, judge),)
    return PixelLoss(config.reconstruction_weight, judges) if config.reconstruction_weight or judges else None


def request_of(config: TrainConfig, name: str) -> GenerationRequest:
    """What previews show; a DreamArtist run's at the scale of training."""
    return GenerationRequest(
        config.preview_prompt.replace(NAME, escaped(name)),
        config.preview_negative_prompt.replace(NAME, escaped(name)),
        config.preview_sampling_steps,
        config.guidance_scale.high if config.negative else config.preview_cfg_scale,
        config.preview_seed,
        config.preview_width or config.width,
        config.preview_height or config.height,
        config.preview_sampler,
    )


def writers_of(
    config: TrainConfig,
    trainer: Trainer,
    run: Run,
    generate: Generate,
    asked: tuple[Flag, Flag],
    warn: Callable[[str], None],
    *,
    ending: bool,
) -> list[Callback]:
    """All that writes into the run's folder; what is asked for is a copy and a preview.

    Before the first step the preview is drawn and the loss measured, but if it is `ending` already.
    """
    copy_now, preview_now = asked
    writers: list[Any] = []
    # First what is measured: of several trials it says which one is copied and drawn.
    if config.evaluate_every:
        evaluation = Evaluation(run, trainer, config.evaluate_every, warn=warn)
        writers.append(Tolerated(evaluation, "validation loss", warn))
        if not ending and not run.validation_losses():
            with writers[-1].tolerating():
                evaluation.before()
    writers.append(FinalEvaluation(run, trainer, warn))
    if config.csv_every:
        writers.append(Tolerated(LossTable(run, config.csv_every), "table of losses", warn))
    writers.append(Tolerated(Copies(run, trainer, config.save_every, copy_now), "copy of the embedding", warn))
    if config.tensorboard:
        board = TensorBoardLog(run.path / "tensorboard", max(1, config.csv_every))
        writers.append(Tolerated(board, "log for TensorBoard", warn))

    request = request_of(config, trainer.embedding_name)
    previews = Previews(run, trainer, generate, request, config.preview_every, config.save_cards, preview_now, warn)
    writers.append(Tolerated(previews, "preview", warn))
    if config.preview_every and not ending:
        with writers[-1].tolerating():
            previews.before(f"a photo of {escaped(trainer.embedding_name)}")
    # The state comes last: what goes on from it does not write anything of its step again.
    return [*writers, StateKeeper(run, trainer, config.state_every, config.state_every_s, trainer.dataset.fingerprint)]
