"""One word, with its negative if it has one, while it learns: vectors, optimizer, average. Knows no model and no data.

A run has one, or several that are trials of the same word.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ti_trainer.config.training import TrainConfig
from ti_trainer.config.trials import Trial, trials_of
from ti_trainer.embedding import Embedding, averaged_name, initial_vectors
from ti_trainer.errors import ConfigError, TrainingError
from ti_trainer.functional.ema import MovingAverage
from ti_trainer.functional.schedule import Schedule
from ti_trainer.model import DiffusionModel, Vectors
from ti_trainer.training.state import Standing, TrainState, prefix
from ti_trainer.training.step import adamw, optimizer_step

NEGATIVE = "negative."  # before a text encoder's name, in a state: the negative embedding's vectors have one


class TrainableEmbedding:
    """A trial of a run, with the embedding that it began as, and its negative if any, under the names that the run has."""

    def __init__(self, plan: Trial, embeddings: Sequence[Embedding], config: TrainConfig, device: torch.device) -> None:
        """Begin at the embeddings' vectors."""
        self.plan, self.embeddings = plan, tuple(embeddings)
        self.rate = Schedule.parse(plan.learning_rate, config.max_steps)
        self.standing = Standing(self.embeddings[0].info.get("init_text"))
        self.words: dict[str, dict[str, Tensor]] = {
            each.name: {
                encoder: vectors.to(device, torch.float32, copy=True).requires_grad_()
                for encoder, vectors in each.vectors.items()
            }
            for each in self.embeddings
        }
        self._follow_words()
        self._factors = (1.0, config.negative_lr)  # of the learning rate, by embedding
        self._clip_grad = config.clip_grad
        limit = "0" if config.clip_grad == "disabled" else config.clip_grad_limit  # what is not used need not be right
        self._clip_limit = Schedule.parse(limit, config.max_steps)
        self._ema = (config.ema_rate, config.ema_every)
        self._average = MovingAverage(self.named(), *self._ema) if config.ema_rate else None

    def _follow_words(self) -> None:
        """The optimizer is that of these vectors."""
        self.parameters = [vectors for word in self.words.values() for vectors in word.values()]
        self.optimizer = adamw([list(word.values()) for word in self.words.values()], self.rate.at(1))

    def move_to_cpu(self, state: TrainState) -> None:
        """Be what a state on the CPU says, without a look at the device, which may have failed."""
        self.words = {
            each.name: {
                encoder: vectors.to("cpu", torch.float32, copy=True).requires_grad_()
                for encoder, vectors in each.vectors.items()
            }
            for each in self.embeddings
        }
        self._follow_words()
        if self._average is not None:
            self._average = MovingAverage(self.named(), *self._ema)
        self.restore(state)

    def update(self, step: int, scaler: Any, *, ask: bool = True) -> bool:
        """Make the vectors those of `step` by their gradients; False if those overflow, and nothing was done."""
        rate = self.rate.at(step)
        for group, factor in zip(self.optimizer.param_groups, self._factors, strict=False):
            group["lr"] = rate * factor
        clip, limit = self._clip_grad, self._clip_limit.at(step)
        updated = optimizer_step(self.optimizer, self.parameters, scaler, clip, limit, ask=ask)
        if updated and self._average is not None:
            self._average.update(step)
        return updated

    def is_finite(self) -> bool:
        """Whether the vectors are numbers still; waits for the device."""
        return all(bool(each.isfinite().all()) for each in self.parameters)

    def now(self, step: int) -> list[Embedding]:
        """The embeddings as they are at `step`, on the CPU."""
        step = step if self.standing.aside_at is None else self.standing.aside_at
        return [
            each.with_vectors(_on_cpu(word), step) for each, word in zip(self.embeddings, self.words.values(), strict=True)
        ]

    def copies(self, step: int) -> list[Embedding]:
        """These, and if one is kept the average of each, named NAME-ema."""
        embeddings = self.now(step)
        if self._average is None:
            return embeddings
        kinds = (prefix(self.plan.number), prefix(self.plan.number) + NEGATIVE)
        averaged = [
            replace(
                each,
                name=averaged_name(each.name),
                vectors=_on_cpu({encoder: self._average.vectors[kind + encoder] for encoder in each.vectors}),
            )
            for kind, each in zip(kinds, embeddings, strict=False)
        ]
        return [*embeddings, *averaged]

    def named(self) -> dict[str, Tensor]:
        """All vectors by the names that they have in a state."""
        kinds = (prefix(self.plan.number), prefix(self.plan.number) + NEGATIVE)
        return {
            kind + encoder: vectors
            for kind, word in zip(kinds, self.words.values(), strict=False)
            for encoder, vectors in word.items()
        }

    def averages(self) -> dict[str, Tensor]:
        """A copy of the moving averages by these names; none if they are not kept."""
        return {} if self._average is None else _on_cpu(self._average.vectors)

    def moments(self) -> dict[int, Any]:
        """A copy of the optimizer's, by the numbers that they have in a state."""
        state = self.optimizer.state_dict()["state"]
        return {self._first + index: {key: _copied(value) for key, value in each.items()} for index, each in state.items()}

    def restore(self, state: TrainState) -> None:
        """Go on from where a state was taken."""
        with torch.no_grad():
            for key, vectors in self.named().items():
                vectors.copy_(state.vectors[key])
        if self._average is not None:
            self._average.restore(state.average)
        indices = range(self._first, self._first + len(self.parameters))
        moments = {index - self._first: each for index, each in state.optimizer["state"].items() if index in indices}
        groups = self.optimizer.state_dict()["param_groups"]  # a file's would bring its learning rate and weight decay
        self.optimizer.load_state_dict({"state": copy.deepcopy(moments), "param_groups": groups})
        if state.standings:
            self.standing = state.standings[self.plan.number - 1]

    @property
    def _first(self) -> int:
        return (self.plan.number - 1) * len(self.parameters)


def learners_of(
    config: TrainConfig, model: DiffusionModel, embeddings: Sequence[Embedding], state: TrainState | None = None
) -> list[TrainableEmbedding]:
    """All trials of a run, where they begin; their vectors are as many as the state's, if it goes on from one of several."""
    first, *others = embeddings
    trainables = []
    for plan in trials_of(config):
        if state is None:
            begun = begin(plan, first, model)
        elif config.trials > 1 or config.trial_vectors:
            begun = _of_state(plan, first, state)
        else:
            begun = first
        trainables.append(TrainableEmbedding(plan, [begun, *others], config, model.device))
    return trainables


def begin(plan: Trial, embedding: Embedding, model: DiffusionModel) -> Embedding:
    """What a trial begins as; ConfigError if the embedding has been trained already and cannot begin as something else."""
    _check_beginning(plan, embedding)
    if plan.init_text is None and plan.num_vectors in (None, embedding.num_vectors):
        return embedding
    text = embedding.info.get("init_text") if plan.init_text is None else plan.init_text
    tokens = embedding.vectors if text is None else model.token_embeddings(text)  # of an unknown text, what came of it
    count = plan.num_vectors or embedding.num_vectors
    vectors = {encoder: initial_vectors(each, count) for encoder, each in tokens.items()}
    info = embedding.info if text is None else {**embedding.info, "init_text": text}
    return replace(embedding, vectors=vectors, info=info)


def check_beginnings(config: TrainConfig, embedding: Embedding) -> None:
    """ConfigError if an embedding that has been trained is to begin as something else in one of a run's trials."""
    for each in trials_of(config):
        _check_beginning(each, embedding)


def _check_beginning(plan: Trial, embedding: Embedding) -> None:
    for name, wanted, what in (
        ("trial_init_texts", plan.init_text, f"begin as {plan.init_text!r}"),
        ("trial_vectors", plan.num_vectors not in (None, embedding.num_vectors), f"have {plan.num_vectors} vectors"),
    ):
        if embedding.step and wanted:
            message = (
                f"{name}: trial {plan.number} of {embedding.name!r} is to {what}, but it has been trained for "
                f"{embedding.step} steps already, with {embedding.num_vectors} vectors: leave that out, or create it anew."
            )
            raise ConfigError(message, name)


def check_state(state: TrainState, trainables: Sequence[TrainableEmbedding], embedding: Embedding) -> None:
    """TrainingError if a state is not of these, or the embedding, as its file has it now, is none of them."""
    name = embedding.name
    if state.trials != len(trainables):
        message = (
            f"The saved state of {name!r} has {state.trials} trials, and this run has {len(trainables)}: continue with "
            f"{state.trials}, or start a new run."
        )
        raise TrainingError(message)
    found, kept = _shapes(state.vectors), _shapes(embedding.vectors)
    expected = _shapes({key: vectors for each in trainables for key, vectors in each.named().items()})
    # Until a run ends the file is what all its trials began from.
    untouched = embedding.step == 0 and any(each.plan.num_vectors for each in trainables)
    is_theirs = untouched or any(_shapes(each.embeddings[0].vectors) == kept for each in trainables)
    if found != expected or not is_theirs:
        message = (
            f"The saved state of {name!r} has vectors of shape {found} and the embedding {kept}: it was made anew "
            "meanwhile, or is trained with or without its negative now. Start a new run."
        )
        raise TrainingError(message)


def _shapes(vectors: Vectors) -> dict[str, tuple[int, ...]]:
    return {key: tuple(each.shape) for key, each in vectors.items()}


def _of_state(plan: Trial, embedding: Embedding, state: TrainState) -> Embedding:
    """A trial's embedding with the shape that the state has of it; what it lacks is noticed when they are compared."""
    key = prefix(plan.number)
    vectors = {encoder: state.vectors.get(key + encoder, each) for encoder, each in embedding.vectors.items()}
    init_text = state.standings[plan.number - 1].init_text if len(state.standings) >= plan.number else None
    info = embedding.info if init_text is None else {**embedding.info, "init_text": init_text}
    return replace(embedding, vectors=vectors, info=info)


def _copied(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else copy.deepcopy(value)


def _on_cpu(vectors: Vectors) -> dict[str, Tensor]:
    return {encoder: each.detach().to("cpu", copy=True) for encoder, each in vectors.items()}
