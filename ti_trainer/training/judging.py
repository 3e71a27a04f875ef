"""Which try of a run is the best: the deterministic loss of each, a table of them, and what is said of it."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

from ti_trainer.embedding import Embedding
from ti_trainer.files import write_bytes
from ti_trainer.memory import ran_out
from ti_trainer.prompts import escaped
from ti_trainer.training.evaluate import described, deterministic_loss
from ti_trainer.training.run import Run
from ti_trainer.training.trainer import Trainer

log = logging.getLogger(__name__)
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


def judge_in_the_end(trainer: Trainer, run: Run, warn: Callable[[str], None]) -> None:
    """Measure the tries, if there are several, unless they were measured at this step; their state is kept before."""
    if trainer.several and trainer.best.standing.measured_at != trainer.step:
        run.save_state(trainer.state(), trainer.dataset.fingerprint)  # it takes a while, and a stop may be in a hurry
        log.info("The tries are compared")
        try:
            judge(trainer)
        except Exception as error:
            if not ran_out(error):
                raise
            warn(f"The tries could not be compared in the end ({error}): what was measured before decides.")


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


def write_table(run: Run, found: Sequence[Verdict]) -> None:
    """The run's tries.csv, anew; nothing of a run without tries."""
    if not found:
        return
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(each.name for each in fields(Verdict))
    for each in found:
        loss = "" if each.deterministic_loss is None else f"{each.deterministic_loss:.7f}"
        last = (loss, *("yes" if yes else "no" for yes in (each.aside, each.kept)))
        first = (each.number, each.learning_rate, each.init_text, each.num_vectors, each.noise, each.step)
        table.writerow((*first, *last))
    write_bytes(run.path / "tries.csv", text.getvalue().encode())


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
