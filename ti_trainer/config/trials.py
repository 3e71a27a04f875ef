"""The trials of a run: variants that are trained in parallel, as the lists in the options describe them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ti_trainer.config.learning import LearningOptions
from ti_trainer.errors import ConfigError
from ti_trainer.functional.lr_scheduler import parse_rate
from ti_trainer.functional.numbers import check_commas, plain
from ti_trainer.functional.schedule import Schedule
from ti_trainer.prompts import CHUNK

LISTS = ("trial_learning_rates", "trial_init_texts", "trial_vectors")
Entry = TypeVar("Entry")


@dataclass(frozen=True)
class Trial:
    """One variant, counted from 1; None means as in the embedding."""

    number: int
    learning_rate: Schedule
    init_text: str | None = None
    num_vectors: int | None = None

    @property
    def stream(self) -> int:
        """Its place among the trials, counted from 0, and the stream of its random numbers."""
        return self.number - 1


def trials_of(config: LearningOptions) -> tuple[Trial, ...]:
    """Every trial of a run; ConfigError, with the option's name, if a list is invalid or too long.

    Lists are repeated after their last entry.
    """
    rates = _entries(config, "trial_learning_rates", lambda text: parse_rate(text, config.max_steps))
    texts = _entries(config, "trial_init_texts", str)
    counts = _entries(config, "trial_vectors", _num_vectors)
    default = parse_rate(config.learning_rate, config.max_steps)
    return tuple(
        Trial(index + 1, _entry(rates, index) or default, _entry(texts, index), _entry(counts, index))
        for index in range(config.trials)
    )


def check_resumable(before: Mapping[str, Any], config: LearningOptions) -> None:
    """Raise ConfigError if a run that started with the options `before` cannot be resumed with those of `config`."""
    for name, default, what in (
        ("optimizer", "adamw", "optimizer"),
        ("trials", 1, "number of trials"),
        ("trial_init_texts", "", "init texts of the trials"),
        ("trial_vectors", "", "numbers of vectors of the trials"),
    ):
        then, now = before.get(name, default), getattr(config, name)
        if then != now:
            message = (
                f"This run was started with {then!r} as {what}, which cannot change to {now!r} when it is resumed. Resume "
                f"it with {then!r}, or start a new run."
            )
            raise ConfigError(message, name)


def _entries(config: LearningOptions, name: str, parse: Callable[[str], Entry]) -> list[Entry | None]:
    """The entries of a list option, None where they are empty."""
    text = getattr(config, name)
    text = text if name == "trial_init_texts" else plain(text)
    if not text.strip():
        return []
    try:
        if name == "trial_learning_rates":
            check_commas(text)
        parts = _split(name, text)
        if len(parts) > config.trials:
            message = (
                f"found {len(parts)} entries for {config.trials} {'trial' if config.trials == 1 else 'trials'}, expected at "
                f"most one for each: raise Trials at once to {len(parts)}, or remove some."
            )
            raise ConfigError(message)  # noqa: TRY301 - the name is put before it below
        return [parse(part) if part else None for part in parts]
    except ConfigError as error:
        message = f"{name}: {error}"
        raise ConfigError(message, name) from error


def _split(name: str, text: str) -> list[str]:
    # Commas also occur inside a text or a schedule.
    semicolons = ";" in text or name == "trial_init_texts" or (name == "trial_learning_rates" and ":" in text)
    return [part.strip() for part in text.split(";" if semicolons else ",")]


def _num_vectors(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= CHUNK:
        message = f"found {text!r}, expected numbers of vectors from 1 to {CHUNK}, such as 1, 2, 4."
        raise ConfigError(message)
    return int(text)


def _entry(entries: Sequence[Entry | None], index: int) -> Entry | None:
    return entries[index % len(entries)] if entries else None
