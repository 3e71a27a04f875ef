"""What the user is told when a run starts: what its options come to with this model and these embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ti_trainer.config.training import TrainConfig
from ti_trainer.data import held_out
from ti_trainer.embedding import Embedding, dreamartist_name, negative_name
from ti_trainer.formats import embeddings_dir
from ti_trainer.prompts import NO_TEXT
from ti_trainer.training.attention_matching import UPDATES_PER_STEP
from ti_trainer.training.early_stopping import why_not
from ti_trainer.training.trainer import Trainer


def negative_mismatch(folder: Path, config: TrainConfig, name: str, loaded: Sequence[tuple[Embedding, Path]]) -> str:
    """A warning if an embedding and its negative do not belong together; "" if they do."""
    negative = negative_name(name)
    if not config.trains_negative and embeddings_dir.find(folder, negative) is not None:
        return f"{negative} exists, but 'Train with DreamArtist' is off: only {name} is trained."
    if config.trains_negative and embeddings_dir.find(folder, negative) is None:
        return f"{negative} starts from DreamArtist's {dreamartist_name(name)}, which is not changed."
    steps = [each.step for each, _ in loaded]
    if len(set(steps)) > 1:
        return f"{name} is at step {steps[0]} and {negative} at step {steps[1]}: they were not trained together."
    return ""


def start_notes(trainer: Trainer, embedding: Embedding) -> Iterator[str]:
    """What the options come to with this model and the embedding as it was loaded, as sentences for the user."""
    about_stopping = why_not(trainer.config) if trainer.config.stop_when_done else ""
    yield from filter(None, (held_out.in_words(trainer.dataset), about_stopping))
    if trainer.matches_attention:
        updates = UPDATES_PER_STEP * trainer.last_step
        yield f"Before the first step, {updates:,} short updates fit the vectors to the U-Net's attention to the prompt."
    starts = [(each.status.init_text or "").strip() for each in trainer.trials] if trainer.config.phrase_share else []
    if not all(starts):
        yield f"{embedding.name} has no initial text: prompt preservation compares prompts without a word in its place."
    if NO_TEXT in starts:
        yield (
            f"{embedding.name} has the initial text '{NO_TEXT}', which describes nothing: prompt preservation compares "
            f"prompts with {NO_TEXT} in its place. To compare with a word, create the embedding from what the images show."
        )
    if trainer.config.prompt_preservation and not trainer.config.phrase_share:
        why = "when learning from a prompt or a LoRA" if trainer.config.has_teacher else "with DreamArtist"
        yield f"Prompt preservation is not used {why}."
    sphere = trainer.config.optimizer == "sphere"
    rates = [each.learning_rate for each in trainer.trials if each.learning_rate.schedule.relative]
    if rates:
        unit = " radians" if sphere else ""
        yield f"Learning rate auto: {rates[0].unit:.2g}{unit} for this model, falling to 0 at step {trainer.last_step}."
    if sphere and embedding.step == trainer.step > 0:
        before, after = (
            max(float(x.norm(dim=1).mean()) for x in each.vectors.values()) for each in (embedding, trainer.embedding)
        )
        if before > 2 * after:
            yield (
                f"The vectors of {embedding.name} were {before / after:.0f} times as long as those of the model's "
                "vocabulary: sphere starts from their directions at the usual length, so the embedding is weaker at first."
            )
