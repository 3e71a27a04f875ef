"""A training that goes nowhere is told of while it can be stopped; one that goes well is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from puppet import CONFIG, Puppet

from ti_trainer.runs.health import FAR, WINDOW, Health
from ti_trainer.runs.run_folder import Run
from ti_trainer.runs.session import Session
from ti_trainer.runs.tables import VALIDATION_COLUMNS, append_row
from ti_trainer.training.events import Finished, StepDone
from ti_trainer.training.trainer import Trainer
from ti_trainer.training.vocabulary import Vocabulary


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path, "x-word", {"name": "x-word"})


@pytest.fixture
def health(trainer: Callable[..., Trainer], run: Run) -> Callable[..., Health]:
    def make(**options: object) -> Health:
        return Health(run, trainer(max_steps=10_000, **options), lambda said: None)

    return make


def stretched(health: Health, factor: float) -> None:
    """The longest vector becomes so many times as long as the model's words."""
    vectors = health.trainer.best.vectors["x-word"]["clip_l"]
    with torch.no_grad():
        vectors.mul_(factor * Vocabulary.of(health.trainer.model).norms["clip_l"] / vectors.norm(dim=1).max())


def step(number: int, loss: float = 1.0) -> StepDone:
    return StepDone(number, 0, number, torch.tensor(loss), 0.005, ("x",))


@pytest.mark.parametrize(("factor", "signs"), [(0.1, 0), (13, 0), (FAR * 0.9, 0), (FAR * 1.1, 1), (2000, 1)])
def test_vectors_far_longer_than_any_word_are_told_of_once(health: Callable[..., Health], factor: float, signs: int) -> None:
    watching = health()
    stretched(watching, factor)
    for event in (step(9), step(10), step(20), Finished(21, "done")):
        watching(event)
        assert len(watching.signs) == (signs if event.step > 9 else 0), "early, and once"
    assert all("too long to be useful" in sign and "lower learning rate" in sign for sign in watching.signs)


def losses(watching: Health, values: list[float]) -> list[str]:
    generator = torch.Generator().manual_seed(0)
    for number in range(1, len(values) * WINDOW + 1):
        noise = float(torch.empty(()).exponential_(1.0, generator=generator))  # as much as there is of timesteps
        watching(step(number, values[(number - 1) // WINDOW] * noise))
    return watching.signs


def test_a_loss_that_stays_above_its_beginning_is_told_of(health: Callable[..., Health]) -> None:
    (sign,) = losses(health(), [0.1, 0.1, 0.3, 0.3, 0.3])
    assert "diverges: at step 400" in sign


@pytest.mark.parametrize(
    "values", [[0.1] * 40, [0.1, 0.3, 0.1, 0.3, 0.1], [0.3, 0.2, 0.1, 0.1]], ids=["flat", "once", "falls"]
)
def test_noise_is_no_sign(health: Callable[..., Health], values: list[float]) -> None:
    assert losses(health(), values) == []


@pytest.mark.parametrize(
    ("measured", "signs"), [((1, 0.9), 0), ((1, 1.05), 0), ((1, 1.2), 1), ((1, 1.2, 0.9), 0), ((1,), 0)]
)
def test_so_is_a_validation_loss_that_rose(
    health: Callable[..., Health], run: Run, measured: tuple[float, ...], signs: int
) -> None:
    watching = health(evaluate_every=50)
    for number, loss in enumerate(measured):
        append_row(run.validation_file, VALIDATION_COLUMNS, (50 * number, loss))
    watching(Finished(120, "done"))
    assert len(watching.signs) == signs


def test_a_run_says_it_at_once_and_in_the_end(session: Session, host: Puppet) -> None:
    warned: list[tuple[str, int]] = []
    result = replace(
        session,
        config=replace(CONFIG, learning_rate="50", max_steps=12),
        warn=lambda said: warned.append((said, len(host.told))),
    ).train()
    ((sign, after),) = [each for each in warned if "too long to be useful" in each[0]]
    assert after == 10, "at the first look"
    assert result.doubts == (sign,)


def test_defaults_raise_no_alarm(session: Session) -> None:
    assert replace(session, config=replace(CONFIG, learning_rate="0.005", max_steps=310)).train().doubts == ()
