"""What differs between the trials of a run, as its options list it. Knows no model and no vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ti_trainer.config.learning import LearningOptions
from ti_trainer.errors import ConfigError
from ti_trainer.functional.numbers import check_commas, plain
from ti_trainer.functional.schedule import Schedule
from ti_trainer.prompts import CHUNK

LISTS = ("trial_learning_rates", "trial_init_texts", "trial_vectors")
Read = TypeVar("Read")


@dataclass(frozen=True)
class Trial:
    """One of the words that are trained side by side, counted from 1; None for what is as the embedding has it."""

    number: int
    learning_rate: str
    init_text: str | None = None
    num_vectors: int | None = None


def trials_of(config: LearningOptions) -> tuple[Trial, ...]:
    """Every trial of a run; ConfigError, which names the option, if a list cannot be read or is too long.

    Lists count from the first trial and begin anew after their last entry.
    """
    rates = _entries(config, "trial_learning_rates", lambda text: _rate(text, config.max_steps))
    texts = _entries(config, "trial_init_texts", str)
    counts = _entries(config, "trial_vectors", _count)
    return tuple(
        Trial(number + 1, _of(rates, number) or config.learning_rate, _of(texts, number), _of(counts, number))
        for number in range(config.trials)
    )


def last_step(config: LearningOptions) -> int:
    """After which no try has anything to do: where the longest of their schedules ends, at the latest at max steps."""
    schedules = (Schedule.parse(each.learning_rate, config.max_steps) for each in trials_of(config))
    return min(config.max_steps, max(each.last_step for each in schedules))


def remarks(config: LearningOptions) -> list[str]:
    """What is to be said of the schedules before the first step: where they end the run, and what of them never comes up."""
    rates = dict.fromkeys(each.learning_rate for each in trials_of(config))
    texts = [("learning rate", rate) for rate in rates]
    if config.clip_grad != "disabled":
        texts.append(("gradient clipping limit", config.clip_grad_limit))
    said = [
        f"The stage {unused!r} of the {what} schedule is never reached."
        for what, text in texts
        for unused in Schedule.parse(text, config.max_steps).unused
    ]
    if (last := last_step(config)) < config.max_steps:
        said.insert(0, f"The learning rate schedule ends at step {last} of {config.max_steps}, and the run ends there.")
    return said


def check_same_start(before: dict[str, Any], config: LearningOptions) -> None:
    """ConfigError if a run that was begun with the options `before` is to go on with other trials, or other beginnings."""
    for name, default, what in (
        ("trials", 1, "trials at once"),
        ("trial_init_texts", "", "init texts of the trials"),
        ("trial_vectors", "", "numbers of vectors of the trials"),
    ):
        then, now = before.get(name, default), getattr(config, name)
        if then != now:
            message = (
                f"This run was begun with {then!r} as {what} and has {now!r} now: that is settled at the beginning. Go "
                f"on with {then!r}, or start a new run."
            )
            raise ConfigError(message, name)


def _entries(config: LearningOptions, name: str, read: Callable[[str], Read]) -> list[Read | None]:
    text = getattr(config, name)
    text = text if name == "trial_init_texts" else plain(text)
    if not text.strip():
        return []
    if name == "trial_learning_rates":
        try:
            check_commas(text)
        except ConfigError as error:
            message = f"{name}: {error}"
            raise ConfigError(message, name) from error
    # A comma may stand within a text or a schedule, not within a number.
    several = ";" in text or name == "trial_init_texts" or (name == "trial_learning_rates" and ":" in text)
    parts = [part.strip() for part in text.split(";" if several else ",")]
    if len(parts) > config.trials:
        message = (
            f"{name}: found {len(parts)} entries for {config.trials} {'trial' if config.trials == 1 else 'trials'}, "
            f"expected at most one for each: raise Trials at once to {len(parts)}, or leave some out."
        )
        raise ConfigError(message, name)
    try:
        return [read(part) if part else None for part in parts]
    except ConfigError as error:
        message = f"{name}: {error}"
        raise ConfigError(message, name) from error


def _rate(text: str, max_steps: int) -> str:
    Schedule.parse(text, max_steps).check_teaches("rate")
    return text


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= CHUNK:
        message = f"found {text!r}, expected numbers of vectors from 1 to {CHUNK}, such as 1, 2, 4."
        raise ConfigError(message)
    return int(text)


def _of(entries: Sequence[Read | None], number: int) -> Read | None:
    return entries[number % len(entries)] if entries else None
