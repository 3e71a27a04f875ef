"""Warmup and decay multiply the schedule as diffusers' schedulers do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers.optimization import get_scheduler

from ti_trainer.config.training import TrainConfig
from ti_trainer.errors import ConfigError
from ti_trainer.functional.lr_scheduler import DECAYS, LearningRate
from ti_trainer.functional.schedule import Schedule
from ti_trainer.training.trainer import StepDone, Trainer

THEIRS = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


def rates(steps: int, **options: object) -> list[float]:
    config = TrainConfig(**{"max_steps": steps, "learning_rate": "0.005", **options})
    return [config.learning_rate_of(config.trial_list[0]).at(step) for step in range(1, config.last_step + 1)]


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize(("warmup", "steps"), [(0, 1), (0, 37), (5, 37), (36, 37)])
def test_rates_are_those_of_diffusers(decay: str, warmup: int, steps: int) -> None:
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=0.005)
    scheduler = get_scheduler(THEIRS[decay], optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    expected = []
    for _ in range(steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates(steps, lr_scheduler=decay, lr_warmup_steps=warmup) == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_a_constant_rate_without_warmup_is_the_schedule_bit_for_bit() -> None:
    schedule = Schedule.parse("0.0051:3, 1.7e-3", 9)
    rate = LearningRate(schedule, "constant", 0, 9)
    assert [rate.at(step) for step in range(1, 10)] == [schedule.at(step) for step in range(1, 10)]


def test_the_decay_multiplies_the_schedule_and_ends_where_the_run_ends() -> None:
    """The schedule ends the run at step 4 of 10."""
    assert rates(10, learning_rate="0.1:2, 0.01:4", lr_scheduler="linear") == pytest.approx([0.1, 0.075, 0.005, 0.0025])


def test_trials_decay_over_the_same_steps_as_the_run(trainer: Callable[..., Trainer]) -> None:
    training = trainer(max_steps=9, trials=2, trial_learning_rates="0.1:2; 0.01:4", lr_scheduler="linear")
    assert training.last_step == 4
    used = [[each.optimizer.param_groups[0]["lr"] for each in training.trials] for _ in training.run()]
    expected = [[0.1, 0.01], [0.075, 0.0075], [0.05, 0.005], [0.025, 0.0025]]
    assert used[:4] == [pytest.approx(each) for each in expected]


def test_a_resumed_run_continues_the_decay(trainer: Callable[..., Trainer]) -> None:
    options = {"max_steps": 8, "learning_rate": "0.005", "lr_scheduler": "cosine", "lr_warmup_steps": 2}
    whole = trainer(**options)
    steps = [(each.learning_rate, each.loss.item()) for each in whole.run() if isinstance(each, StepDone)]
    assert [rate for rate, _ in steps] == rates(8, lr_scheduler="cosine", lr_warmup_steps=2)
    first = trainer(**options)
    list(first.run(should_stop=lambda: first.step == 5))
    second = trainer(state=first.state(), **options)
    assert [(each.learning_rate, each.loss.item()) for each in second.run() if isinstance(each, StepDone)] == steps[5:]
    assert torch.equal(second.state().vectors["clip_l"], whole.state().vectors["clip_l"])


@pytest.mark.parametrize("options", [{"max_steps": 10}, {"max_steps": 100, "learning_rate": "0.005:10"}])
def test_a_warmup_as_long_as_the_run_is_refused(options: dict[str, object]) -> None:
    TrainConfig(lr_warmup_steps=9, **options)
    with pytest.raises(ConfigError, match="expected fewer than the 10 of the run") as caught:
        TrainConfig(lr_warmup_steps=10, **options)
    assert caught.value.option == "lr_warmup_steps"
