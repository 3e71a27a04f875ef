"""Which try of a run is the best: the deterministic loss of each, a table of them, and what is said of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ti_trainer.embedding import Embedding
from ti_trainer.prompts import escaped
from ti_trainer.training.evaluation import described, deterministic_loss
from ti_trainer.training.trainer import Trainer

PICTURES = 8


@dataclass(frozen=True)
class Verdict:
    """A try as the table has it. No loss: it was not measured. `aside`: it went wrong at the step that it is at."""

    number: int
    learning_rate: str
    init_text: str
    num_vectors: int
    noise: str
    step: int
    deterministic_loss: float | None
    aside: bool
    kept: bool


def judge(trainer: Trainer, pictures: int = PICTURES) -> float:
    """Measure the deterministic loss of every try that goes on, on the same pictures with the same noise; the lowest."""
    losses = {each.plan.number: _loss(trainer, each.now(trainer.step), pictures) for each in trainer.learning}
    trainer.judge(losses)
    return losses[trainer.best.plan.number]


def verdicts(trainer: Trainer) -> tuple[Verdict, ...]:
    """Of all tries of a run, none if it has only one."""
    if not trainer.several:
        return ()
    best = trainer.best
    return tuple(
        Verdict(
            each.plan.number,
            each.plan.learning_rate,
            each.standing.init_text or "",
            each.embeddings[0].num_vectors,
            f"seed {trainer.config.seed}, try {each.plan.number}",
            each.now(trainer.step)[0].step,
            each.standing.loss,
            each.standing.aside_at is not None,
            each is best,
        )
        for each in trainer.learners
    )


def in_words(found: Sequence[Verdict]) -> str:
    """Which was kept, and how the others did; "" of a run without tries."""
    if not found:
        return ""
    kept = next(each for each in found if each.kept)
    others = ", ".join(f"try {each.number} {_stands(each)}" for each in found if not each.kept)
    return f"try {kept.number} of {len(found)}, {_stands(kept)}; {others}"


def _stands(found: Verdict) -> str:
    if found.aside:
        return f"went wrong after step {found.step}"
    return "was not measured" if found.deterministic_loss is None else f"deterministic loss {found.deterministic_loss:.5f}"


def _loss(trainer: Trainer, embeddings: Sequence[Embedding], pictures: int) -> float:
    """Of one try."""
    model, items = trainer.model, trainer.dataset.pictures_of_the_thing
    some = items[:: -(-len(items) // pictures)]
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
    at_once = trainer.config.batch_size * len(trainer.learners)  # what memory was planned for
    unsaid = said[1] if len(embeddings) > 1 else ()
    with model.training():
        return deterministic_loss(model, some, said[0], words, trainer.scale, unsaid, at_once)
