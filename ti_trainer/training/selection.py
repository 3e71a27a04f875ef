"""Select the best trial of a run by its validation loss."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ti_trainer.data.dataset import Item
from ti_trainer.embedding import Embedding
from ti_trainer.offload.plan import ran_out
from ti_trainer.prompts import escaped
from ti_trainer.training.evaluation import NUM_TIMESTEPS, described, gap_closed, validation_loss
from ti_trainer.training.slider import slider_positions
from ti_trainer.training.trainer import Trainer

IMAGES = 8


@dataclass(frozen=True)
class TrialResult:
    """A trial as a row of the table of trials. The loss is None if it was not measured; `stopped` trials diverged."""

    number: int
    learning_rate: str
    init_text: str
    num_vectors: int
    noise: str
    step: int
    validation_loss: float | None
    stopped: bool
    kept: bool


def evaluate_trials(trainer: Trainer, images: int = IMAGES) -> float:
    """Measure the validation loss of each active trial, on the same images with the same noise; return the lowest."""
    losses = {each.trial.number: _loss(trainer, each.now(trainer.step), images) for each in trainer.active_trials}
    trainer.record_validation(losses)
    return losses[trainer.best.trial.number]


def quick_loss(trainer: Trainer) -> float:
    """The validation loss of the embedding as it is now, on few samples, so that it can be measured often."""
    try:  # without gradients, twice as many samples fit into memory, and they take two thirds of the time
        return _loss(trainer, trainer.embeddings, NUM_TIMESTEPS, factor=2, spread=True)
    except Exception as error:
        if not ran_out(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the memory
    return _loss(trainer, trainer.embeddings, NUM_TIMESTEPS, spread=True)


def trial_results(trainer: Trainer) -> tuple[TrialResult, ...]:
    """The results of all trials of a run; empty if it has only one."""
    if not trainer.has_trials:
        return ()
    best = trainer.best
    return tuple(
        TrialResult(
            each.trial.number,
            str(each.trial.learning_rate),
            each.status.init_text or "",
            each.embeddings[0].num_vectors,
            f"seed {trainer.config.seed}, trial {each.trial.number}",
            each.now(trainer.step)[0].step,
            each.status.validation_loss,
            each.status.stopped_at is not None,
            each is best,
        )
        for each in trainer.trials
    )


def summary(results: Sequence[TrialResult]) -> str:
    """Which trial was kept, and the results of the others; "" without results."""
    if not results:
        return ""
    kept = next(each for each in results if each.kept)
    others = ", ".join(f"trial {each.number} {_outcome(each)}" for each in results if not each.kept)
    return f"trial {kept.number} of {len(results)}, {_outcome(kept)}; {others}"


def measure_gaps(trainer: Trainer, images: int = IMAGES) -> dict[str, float]:
    """`gap_closed` of each embedding of a run, by name; empty if it learns from images, or is a slider."""
    teacher = trainer.teacher
    if teacher is None or teacher.opposite:
        return {}
    model, prompter = trainer.model, trainer.dataset.prompter
    items, embeddings = _measured(trainer, images)
    items = items[:: len(prompter.names)]  # of a pair, each is measured on half of them
    gaps = {}
    with model.training():
        for name in prompter.names:
            prompts = replace(prompter, name=name, both=False).first(len(items))
            gaps[name] = gap_closed(model, items, prompts, embeddings, teacher, trainer.config.batch_size)
    return gaps


def measure_slider(trainer: Trainer, images: int = IMAGES) -> dict[float, float]:
    """`slider_positions` of a run; empty if it trains no slider."""
    if trainer.teacher is None or not trainer.teacher.opposite:
        return {}
    model, lines = trainer.model, trainer.dataset.prompter.uncaptioned
    items, embeddings = _measured(trainer, images)
    prompts = [lines[number % len(lines)] for number in range(len(items))]
    with model.training():
        return slider_positions(model, items, prompts, embeddings, trainer.teacher, trainer.config.batch_size)


def _measured(trainer: Trainer, images: int) -> tuple[list[Item], dict[str, dict[str, Tensor]]]:
    """The images to measure on, and the result's vectors on the device, by the embeddings' names."""
    device = trainer.model.device
    vectors = {each.name: {key: one.to(device) for key, one in each.vectors.items()} for each in trainer.result}
    return list(trainer.dataset.images_of_the_thing[:images]), vectors


def _outcome(result: TrialResult) -> str:
    if result.stopped:
        return f"was stopped after step {result.step}"
    return "was not measured" if result.validation_loss is None else f"validation loss {result.validation_loss:.5f}"


def _loss(trainer: Trainer, trial: Sequence[Embedding], images: int, *, factor: int = 1, spread: bool = False) -> float:
    """The validation loss of one trial, on up to `images` images that are spread evenly over the dataset.

    At `factor` times as many samples at once as in training; `spread` as for `fixed_batches`.
    """
    model, items = trainer.model, trainer.dataset.validation_images
    some = items[:: -(-len(items) // images)]
    embeddings = {
        each.name: {encoder: vectors.to(model.device) for encoder, vectors in each.vectors.items()} for each in trial
    }
    captions = [[item.caption or "" for item in some] for _ in embeddings]
    if trainer.config.positive_filewords_only and len(trial) > 1:
        captions[1] = [""] * len(some)
    prompts = [
        [described(f"a photo of {escaped(name)}", caption) for caption in those]
        for name, those in zip(embeddings, captions, strict=True)
    ]
    if trainer.teacher is not None:
        prompts[0] = trainer.dataset.prompter.first(len(some))
    at_once = factor * trainer.config.batch_size * len(trainer.trials)  # memory was planned for a factor of 1
    negative_prompts = prompts[1] if len(trial) > 1 else ()
    with model.training():
        return validation_loss(
            model, some, prompts[0], embeddings, trainer.scale, negative_prompts, at_once, trainer.teacher, spread=spread
        )
