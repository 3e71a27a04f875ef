"""Which trial of a run is the best: the validation loss of each, a table of them, and what is said of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ti_trainer.embedding import Embedding
from ti_trainer.prompts import escaped
from ti_trainer.training.evaluation import described, validation_loss
from ti_trainer.training.trainer import Trainer

IMAGES = 8


@dataclass(frozen=True)
class TrialResult:
    """A trial as the table has it. No loss: it was not measured. `aside`: it went wrong at the step that it is at."""

    number: int
    learning_rate: str
    init_text: str
    num_vectors: int
    noise: str
    step: int
    validation_loss: float | None
    aside: bool
    kept: bool


def judge(trainer: Trainer, images: int = IMAGES) -> float:
    """Measure the validation loss of every trial that goes on, on the same images with the same noise; the lowest."""
    losses = {each.plan.number: _loss(trainer, each.now(trainer.step), images) for each in trainer.learning}
    trainer.judge(losses)
    return losses[trainer.best.plan.number]


def trial_results(trainer: Trainer) -> tuple[TrialResult, ...]:
    """Of all trials of a run, none if it has only one."""
    if not trainer.several:
        return ()
    best = trainer.best
    return tuple(
        TrialResult(
            each.plan.number,
            each.plan.learning_rate,
            each.standing.init_text or "",
            each.embeddings[0].num_vectors,
            f"seed {trainer.config.seed}, trial {each.plan.number}",
            each.now(trainer.step)[0].step,
            each.standing.loss,
            each.standing.aside_at is not None,
            each is best,
        )
        for each in trainer.trainables
    )


def in_words(found: Sequence[TrialResult]) -> str:
    """Which was kept, and how the others did; "" of a run without trials."""
    if not found:
        return ""
    kept = next(each for each in found if each.kept)
    others = ", ".join(f"trial {each.number} {_stands(each)}" for each in found if not each.kept)
    return f"trial {kept.number} of {len(found)}, {_stands(kept)}; {others}"


def _stands(found: TrialResult) -> str:
    if found.aside:
        return f"went wrong after step {found.step}"
    return "was not measured" if found.validation_loss is None else f"validation loss {found.validation_loss:.5f}"


def _loss(trainer: Trainer, embeddings: Sequence[Embedding], images: int) -> float:
    """Of one trial."""
    model, items = trainer.model, trainer.dataset.images_of_the_thing
    some = items[:: -(-len(items) // images)]
    words = {
        each.name: {encoder: vectors.to(model.device) for encoder, vectors in each.vectors.items()} for each in embeddings
    }
    captions = [[item.caption or "" for item in some] for _ in words]
    if trainer.config.positive_filewords_only and len(embeddings) > 1:
        captions[1] = [""] * len(some)
    said = [
        [described(f"a photo of {escaped(name)}", caption) for caption in those]
        for name, those in zip(words, captions, strict=True)
    ]
    at_once = trainer.config.batch_size * len(trainer.trainables)  # what memory was planned for
    unsaid = said[1] if len(embeddings) > 1 else ()
    with model.training():
        return validation_loss(model, some, said[0], words, trainer.scale, unsaid, at_once)
