"""Train an embedding again: longer than its run was to take, or from its start."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ti_trainer.config.training import TrainConfig
from ti_trainer.embedding import Embedding, negative_name
from ti_trainer.errors import ConfigError
from ti_trainer.formats import embeddings_dir
from ti_trainer.host import Host
from ti_trainer.runs import locks
from ti_trainer.runs.integrity import back_up
from ti_trainer.runs.run_folder import Run

log = logging.getLogger(__name__)


def longer(config: TrainConfig, step: int, steps: int) -> TrainConfig:
    """The options to train for this number of steps after `step`, to the last one; the last learning rate stays."""
    extended = replace(config, max_steps=step + steps, stop_when_done=False)
    if extended.last_step > step:
        return extended
    rate, _ = extended.trial_list[0].learning_rate.stages[-1]
    return replace(extended, learning_rate=repr(rate), trial_learning_rates="")


def about_longer(before: TrainConfig, after: TrainConfig) -> str:
    """How the options of `longer` differ, as a sentence."""
    rate = f", at the last learning rate, {after.learning_rate}," if after.learning_rate != before.learning_rate else ""
    return f"Training continues to step {after.last_step}{rate} without early stopping."


def about_reset(copies: Sequence[Path]) -> str:
    """Where what `reset` replaced is, as a sentence."""
    return f"As it was before: {', '.join(map(str, copies))}."


def reset(host: Host, name: str, *, negative: bool, warn: Callable[[str], None] = log.warning) -> list[Path]:
    """Create an embedding, and its negative one, again from the text that it was created from.

    Returns copies of the files as they were. ConfigError if the text is not known, so that nothing can be lost.
    """
    names = (name, negative_name(name))[: 2 if negative else 1]
    with host.lock(), locks.embeddings_held(host.embeddings_dir, names):
        loaded = [embeddings_dir.load(host.embeddings_dir, each) for each in names]
        starts = [(_init_text(embedding), embedding.num_vectors) for embedding, _ in loaded]
        host.log_dir.mkdir(parents=True, exist_ok=True)
        copies = [back_up(file, Run(host.log_dir)) for _, file in loaded]
        word = (name, *starts[0])
        if negative:
            embeddings_dir.create_pair(host.embeddings_dir, host.open_model(), word, starts[1], overwrite=True, warn=warn)
        else:
            embeddings_dir.create(host.embeddings_dir, host.open_model(), *word, overwrite=True, warn=warn)
        host.embeddings_changed()
    return copies


def _init_text(embedding: Embedding) -> str:
    text = embedding.info.get("init_text")
    if not isinstance(text, str):
        message = (
            f"The file of {embedding.name!r} does not say from which text it was created, so it cannot be started over: "
            "create an embedding with a new name."
        )
        raise ConfigError(message)
    return text
