"""Build the trials of a run, from the embedding or from a saved state, and check that they can start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ti_trainer.config.training import TrainConfig
from ti_trainer.config.trials import Trial
from ti_trainer.embedding import Embedding, initial_vectors
from ti_trainer.errors import ConfigError, TrainingError
from ti_trainer.functional.sphere import on_sphere
from ti_trainer.model import DiffusionModel, Vectors
from ti_trainer.training.state import TrainState, prefix
from ti_trainer.training.trainable_embedding import TrainableEmbedding
from ti_trainer.training.vocabulary import Vocabulary


def build_trials(
    config: TrainConfig, model: DiffusionModel, embeddings: Sequence[Embedding], state: TrainState | None = None
) -> list[TrainableEmbedding]:
    """All trials of a run at their start, with as many vectors as in the state if the run is resumed."""
    first, *others = embeddings
    vocabulary = Vocabulary.of(model)
    trials = []
    for trial in config.trial_list:
        if state is None:
            start = starting_embedding(trial, first, model)
        elif config.trials > 1 or config.trial_vectors:
            start = _with_shape_of(state, trial, first)
        else:
            start = first
        starts = [start, *others]
        if state is None and config.optimizer == "sphere":
            starts = [_with_norms(each, vocabulary.norms, config.seed + trial.number) for each in starts]
        trials.append(TrainableEmbedding(trial, starts, config, model.device, vocabulary.spread))
    return trials


def starting_embedding(trial: Trial, embedding: Embedding, model: DiffusionModel) -> Embedding:
    """What a trial starts from; ConfigError if it is to differ from an embedding that has been trained already."""
    _check_start(trial, embedding)
    if trial.init_text is None and trial.num_vectors in (None, embedding.num_vectors):
        return embedding
    text = embedding.info.get("init_text") if trial.init_text is None else trial.init_text
    tokens = embedding.vectors if text is None else model.token_embeddings(text)  # without a text, its vectors are repeated
    count = trial.num_vectors or embedding.num_vectors
    vectors = {encoder: initial_vectors(each, count) for encoder, each in tokens.items()}
    info = embedding.info if text is None else {**embedding.info, "init_text": text}
    return replace(embedding, vectors=vectors, info=info)


def check_starts(config: TrainConfig, embedding: Embedding) -> None:
    """Raise ConfigError if a trial is to start differently from an embedding that has been trained already."""
    for each in config.trial_list:
        _check_start(each, embedding)


def check_steps(name: str, step: int, config: TrainConfig) -> None:
    """Raise ConfigError if nothing is left to train for an embedding at `step`."""
    if config.last_step == 0:
        message = "The learning rate schedule ends at step 0, so nothing would be learned. End it at step 1 or later."
        raise ConfigError(message, "learning_rate")
    if step >= config.last_step:
        message = (
            f"{name!r} has been trained for {step} steps already and this run ends at {config.last_step}: raise max steps, "
            "or the steps of the learning rate schedule, or create the embedding again, replacing this one."
        )
        raise ConfigError(message, "max_steps")


def check_state(state: TrainState, trials: Sequence[TrainableEmbedding], embedding: Embedding) -> None:
    """Raise TrainingError if a state does not belong to these trials and the embedding's file."""
    name = embedding.name
    if state.num_trials != len(trials):
        message = (
            f"The saved state of {name!r} has {state.num_trials} trials, and this run has {len(trials)}: continue with "
            f"{state.num_trials}, or start a new run."
        )
        raise TrainingError(message)
    found, kept = _shapes(state.vectors), _shapes(embedding.vectors)
    expected = _shapes({key: vectors for each in trials for key, vectors in each.named().items()})
    # Until a run ends, the file holds what all its trials started from.
    unchanged = embedding.step == 0 and any(each.trial.num_vectors for each in trials)
    is_theirs = unchanged or any(_shapes(each.embeddings[0].vectors) == kept for each in trials)
    if found != expected or not is_theirs:
        message = (
            f"The saved state of {name!r} has vectors of shape {found} and the embedding {kept}: the embedding was created "
            "anew, or DreamArtist was turned on or off. Start a new run."
        )
        raise TrainingError(message)


def _check_start(trial: Trial, embedding: Embedding) -> None:
    for name, wanted, what in (
        ("trial_init_texts", trial.init_text, f"start from {trial.init_text!r}"),
        ("trial_vectors", trial.num_vectors not in (None, embedding.num_vectors), f"have {trial.num_vectors} vectors"),
    ):
        if embedding.step and wanted:
            message = (
                f"{name}: trial {trial.number} of {embedding.name!r} is to {what}, but it has been trained for "
                f"{embedding.step} steps already, with {embedding.num_vectors} vectors. Leave the option empty, or create "
                "the embedding anew."
            )
            raise ConfigError(message, name)


def _with_norms(embedding: Embedding, norms: Mapping[str, float], seed: int) -> Embedding:
    """The embedding with vectors of these norms, by text encoder."""
    vectors = {encoder: on_sphere(each, norms[encoder], seed) for encoder, each in embedding.vectors.items()}
    return replace(embedding, vectors=vectors)


def _shapes(vectors: Vectors) -> dict[str, tuple[int, ...]]:
    return {key: tuple(each.shape) for key, each in vectors.items()}


def _with_shape_of(state: TrainState, trial: Trial, embedding: Embedding) -> Embedding:
    """A trial's embedding in the shape that the state has it in; `check_state` notices what is missing."""
    start = prefix(trial.number)
    vectors = {encoder: state.vectors.get(start + encoder, each) for encoder, each in embedding.vectors.items()}
    init_text = state.trials[trial.stream].init_text if trial.stream < len(state.trials) else None
    info = embedding.info if init_text is None else {**embedding.info, "init_text": init_text}
    return replace(embedding, vectors=vectors, info=info)
