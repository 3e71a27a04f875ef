"""Build the parts of a run from its options: embeddings, dataset, prompts, losses, callbacks, settings."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event as Flag
from typing import Any

import torch

from ti_trainer import __version__
from ti_trainer.config.training import TrainConfig
from ti_trainer.data import held_out
from ti_trainer.data.dataset import Dataset
from ti_trainer.data.images import frame_of
from ti_trainer.data.loading import DatasetOptions, load_dataset
from ti_trainer.data.prompts import NAME, Prompter
from ti_trainer.data.subsets import Subset
from ti_trainer.embedding import LEARNED_FROM, Embedding, negative_name
from ti_trainer.errors import ConfigError
from ti_trainer.files import entered_path
from ti_trainer.formats import embeddings_dir, webui_optimizer
from ti_trainer.host import GenerationRequest, ModelOptions
from ti_trainer.lora import Lora
from ti_trainer.model import DiffusionModel
from ti_trainer.prompts import escaped
from ti_trainer.runs.callbacks import (
    Callback,
    Copies,
    Evaluation,
    FinalEvaluation,
    Generate,
    LossTable,
    NonEssential,
    Previews,
    StateKeeper,
    TensorBoardLog,
)
from ti_trainer.runs.comparison import Comparison
from ti_trainer.runs.early_stopping import HELD_OUT, KeepBest
from ti_trainer.runs.run_folder import LORA_HASH, Run
from ti_trainer.training import discriminator
from ti_trainer.training.pixel_loss import PixelLoss, latent_pixels_at_once
from ti_trainer.training.state import TrainState, for_trials
from ti_trainer.training.trainer import Trainer

SLIDER_WEIGHTS = (-1.0, 1.0)  # of a slider's name in training


def model_options(config: TrainConfig) -> ModelOptions:
    """The options that the model is opened with."""
    return ModelOptions(config.precision, config.clip_skip, config.prediction_type, config.zero_terminal_snr)


def load_embeddings(folder: Path, config: TrainConfig, name: str) -> list[tuple[Embedding, Path]]:
    """The embedding and, if it is trained too, its negative, with their files; ConfigError if one does not exist."""
    loaded = [embeddings_dir.load(folder, name)]
    if config.trains_negative:
        negative = negative_name(name)
        if embeddings_dir.find_negative(folder, name) is None:
            otherwise = "turn DreamArtist off" if config.negative else "leave out the negative prompt to learn from"
            message = (
                f"There is no embedding {negative!r} in {folder}, the negative of {name!r}. Create {negative!r} with about "
                f"6 vectors, or {otherwise}."
            )
            raise ConfigError(message, "negative" if config.negative else "teacher_negative_prompt")
        loaded.append(embeddings_dir.load_negative(folder, name))
    return loaded


def webui_state(file: Path, embedding: Embedding, model: DiffusionModel, config: TrainConfig) -> TrainState | None:
    """The optimizer state beside a .pt file, as the WebUI writes it, if it belongs to these vectors; for every trial."""
    if config.trial_init_texts or config.trial_vectors:
        return None  # trials with other starting points begin without a state
    if config.optimizer != "adamw":
        return None  # the WebUI has no other
    optimizer = webui_optimizer.read_optimizer(file, embedding) if file.suffix == ".pt" else None
    if optimizer is None:
        return None
    vectors = {encoder: each.to(model.device) for encoder, each in embedding.vectors.items()}
    own_groups = {"state": optimizer["state"]}  # the file's would bring its learning rate and weight decay
    return for_trials(TrainState(embedding.step, 0, vectors, (own_groups,)), config.trials)


def settings_of(
    config: TrainConfig, name: str, images: Path, model: DiffusionModel, dataset: Dataset, lora: Lora | None
) -> dict[str, Any]:
    """The content of a run's settings.json; `lora` is the one that it learns from."""
    subsets = [each.to_dict() for each in dataset.subsets]
    return {
        "version": __version__,
        "name": name,
        "images": str(images.resolve()),
        **({} if subsets == [{"image_dir": str(images)}] else {"dataset": subsets}),
        "num_images": len(dataset.items),
        "skipped": [str(path.name) for path, _ in dataset.skipped],
        **({HELD_OUT: [held_out.name_of(item) for item in dataset.held_out]} if dataset.held_out else {}),
        "model": model.name,
        "model_hash": model.checkpoint_hash,
        "model_spec": str(model.spec),
        **({} if lora is None else {LORA_HASH: lora.file_hash}),
        "train": config.to_dict(),
    }


def prompter_of(config: TrainConfig, name: str, template: Sequence[str], plain: Sequence[str]) -> Prompter:
    """The prompter of a run; `plain` are the template's lines for images without a caption."""
    return Prompter(
        name,
        template,
        config.shuffle_tags,
        config.tag_dropout,
        negative_name(name) if config.trains_negative else "",
        config.positive_filewords_only,
        plain,
        SLIDER_WEIGHTS if config.opposite_prompt else (),
        both=bool(config.teacher_negative_prompt),
        phrase_share=config.phrase_share,
    )


def dataset_of(
    config: TrainConfig,
    model: DiffusionModel,
    prompter: Prompter,
    subsets: Sequence[Subset],
    loading: Callable[[int, int], None],
) -> Dataset:
    """Read and encode the images, without warnings: `datasets.warnings_of` gives them before."""
    dataset = load_dataset(
        subsets,
        model,
        frame_of(config, model.default_size_px),
        prompter,
        DatasetOptions.of(config),
        progress=loading,
        warn=lambda message: None,
    )
    # A teacher knows what to make of any latents: with noise among them, hard prompts are learned better.
    return replace(dataset, noise_instead=config.has_teacher)


def fit_memory(config: TrainConfig, model: DiffusionModel, dataset: Dataset, pixel_loss: PixelLoss | None) -> str:
    """Have the model choose how to save memory for this run's largest batch; a summary of the choice for people."""
    largest = max(item.latents[0].numel() for item in (*dataset.items, *dataset.held_out))
    batch = config.batch_size * config.trials
    decoded = 0 if pixel_loss is None else latent_pixels_at_once(batch, largest)
    return model.fit_memory((2 if config.trains_negative else 1) * batch * largest, decoded, config.memory)


def described(embedding: Embedding, model: DiffusionModel, dataset: Dataset, config: TrainConfig) -> Embedding:
    """The embedding with what its file says about the training: the model, the number of images, our version."""
    info = {**embedding.info, "num_images": len(dataset.items), "ti_trainer": __version__}
    if config.has_teacher:
        info[LEARNED_FROM] = "a LoRA" if config.teacher_lora else "a prompt"
    return replace(embedding, checkpoint=model.name, checkpoint_hash=model.checkpoint_hash, info=info)


def facts_of(trainer: Trainer) -> dict[str, str]:
    """Hashes of what must be equal in all processes that train together. Latents are left out: GPUs differ in last bits."""
    model, state = trainer.model, trainer.state()
    images = [
        (each.path.name, each.caption, tuple(each.latents.shape), each.subset.weight, each.subset.is_reg, each.repeats)
        for each in trainer.dataset.items
    ]
    vectors = b"".join(each.cpu().numpy().tobytes() for each in state.vectors.values())
    facts = {
        "dataset": images,
        # Of the memory modes only 8bit changes numbers.
        "set of options": {**trainer.config.to_dict(), "memory": trainer.config.memory == "8bit"},
        "state of the embedding": (state.step, state.micro_step, vectors),
        "model": model.checkpoint_hash,
        "LoRA": None if trainer.lora is None else trainer.lora.file_hash,
        "kind of device": (model.device.type, model.needs_loss_scaling),
    }
    return {name: hashlib.sha256(repr(fact).encode()).hexdigest()[:16] for name, fact in facts.items()}


def pixel_loss_of(config: TrainConfig, device: torch.device, *, torchscript: bool) -> PixelLoss | None:
    """The loss on decoded pixels, None if it is off; ConfigError for a discriminator that is not one or not allowed."""
    discriminators: tuple[tuple[float, discriminator.Discriminator], ...] = ()
    if config.discriminator and config.discriminator_weight:
        path = entered_path(config.discriminator)
        loaded = discriminator.load(path, config.discriminator_class, device, torchscript=torchscript)
        discriminators = ((config.discriminator_weight, loaded),)
    if not config.reconstruction_weight and not discriminators:
        return None
    return PixelLoss(config.reconstruction_weight, discriminators)


def requests_of(config: TrainConfig, name: str) -> list[GenerationRequest]:
    """The requests for a preview, one for each prompt; with DreamArtist at the guidance scale of training.

    A negative that learns from a prompt of its own is in the negative prompt; that of DreamArtist is added later.
    """
    negative_prompt = config.preview_negative_prompt.replace(NAME, escaped(name))
    if config.teacher_negative_prompt:
        negative_prompt = ", ".join(filter(None, (escaped(negative_name(name)), negative_prompt)))
    request = GenerationRequest(
        "",
        negative_prompt,
        config.preview_sampling_steps,
        config.guidance_scale.high if config.negative else config.preview_cfg_scale,
        config.preview_seed,
        config.preview_width or config.width,
        config.preview_height or config.height,
        config.preview_sampler,
    )
    return [replace(request, prompt=each.replace(NAME, escaped(name))) for each in config.preview_prompts or ("",)]


def run_callbacks(
    config: TrainConfig,
    trainer: Trainer,
    run: Run,
    generate: Generate,
    requests: tuple[Flag, Flag],
    warn: Callable[[str], None],
    keep_best: KeepBest | None,
    *,
    stopping: bool,
) -> list[Callback]:
    """The callbacks that write into the run folder; `requests` are those for a copy and for a preview.

    Unless the run is `stopping` already, the validation loss is measured and a preview generated before the first step.
    """
    copy_now, preview_now = requests
    callbacks: list[Callback] = []
    # Evaluation comes first: it decides which of several trials is copied and previewed.
    if config.evaluate_every:
        evaluation = Evaluation(run, trainer, config.evaluate_every, warn=warn)
        evaluate = NonEssential(evaluation, "validation loss", warn)
        callbacks.append(evaluate)
        if not stopping and not run.validation_losses():
            with evaluate.tolerating():
                evaluation.before()
    callbacks.append(FinalEvaluation(run, trainer, warn))
    if keep_best is not None:
        keep = NonEssential(keep_best, "validation loss", warn)
        callbacks.append(keep)
        if not stopping and not run.validation_losses():
            with keep.tolerating():
                keep_best.before()
    if config.csv_every:
        callbacks.append(NonEssential(LossTable(run, config.csv_every), "loss table", warn))
    callbacks.append(NonEssential(Copies(run, trainer, config.save_every, copy_now), "copy of the embedding", warn))
    if config.tensorboard:
        board = TensorBoardLog(run.path / "tensorboard", max(1, config.csv_every))
        callbacks.append(NonEssential(board, "TensorBoard log", warn))

    requested = requests_of(config, trainer.embedding_name)
    previews = Previews(run, trainer, generate, requested, config.preview_every, config.save_cards, preview_now, warn)
    preview = NonEssential(previews, "preview", warn)
    callbacks.append(preview)
    if config.preview_every and not stopping:
        with preview.tolerating():
            previews.before(f"a photo of {escaped(trainer.embedding_name)}")
    if Comparison.applies_to(config):
        comparison = Comparison(run, trainer, generate, requested[0], warn)
        callbacks.append(NonEssential(comparison, "comparison with what it was to learn", warn))
    # The state comes last, so that a resumed run does not write the files of its step again.
    return [*callbacks, StateKeeper(run, trainer, config.state_every, config.state_every_s, trainer.dataset.fingerprint)]
