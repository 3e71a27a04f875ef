"""A learning rate of `auto` depends on the model and falls to 0; numbers and schedules stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fakes import TinyHost, TinyModel

from ti_trainer.config.training import TrainConfig, problems
from ti_trainer.errors import ConfigError
from ti_trainer.formats import embeddings_dir
from ti_trainer.functional.lr_scheduler import AUTO_FRACTION
from ti_trainer.runs.session import Session
from ti_trainer.training.trainer import StepDone, Trainer
from ti_trainer.training.vocabulary import Vocabulary


def rates(trainer: Trainer) -> list[float]:
    return [event.learning_rate for event in trainer.run() if isinstance(event, StepDone)]


def test_it_is_a_fraction_of_the_vocabularys_spread_and_falls_linearly(trainer: Callable[..., Trainer]) -> None:
    start = AUTO_FRACTION * Vocabulary.of(TinyModel()).spread
    assert rates(trainer(learning_rate="auto", max_steps=4)) == pytest.approx(
        [start * part for part in (1, 0.75, 0.5, 0.25)]
    )


def test_the_embedded_models_rate_is_near_the_best_that_was_measured(embedded_model: object) -> None:
    assert AUTO_FRACTION * Vocabulary.of(embedded_model).spread == pytest.approx(0.003, rel=0.05)


def test_a_decay_and_a_warmup_that_were_chosen_apply(trainer: Callable[..., Trainer]) -> None:
    options = {"max_steps": 6, "lr_scheduler": "cosine", "lr_warmup_steps": 2}
    start = AUTO_FRACTION * Vocabulary.of(TinyModel()).spread
    number = rates(trainer(learning_rate=repr(start), **options))
    assert rates(trainer(learning_rate=" Auto ", **options)) == pytest.approx(number)


@pytest.mark.parametrize(("optimizer", "start"), [("sphere", 0.03), ("prodigy", 1.0)])
def test_other_optimizers_have_rates_of_their_own(optimizer: str, start: float) -> None:
    config = TrainConfig(optimizer=optimizer, learning_rate="auto", max_steps=4)
    assert config.learning_rate_of(config.trial_list[0], 0.01).at(1) == start
    assert config.schedule_notes() == []


def test_each_trial_may_use_it(trainer: Callable[..., Trainer]) -> None:
    training = trainer(trials=2, trial_learning_rates="auto, 0.01", max_steps=2)
    list(training.run())
    start = AUTO_FRACTION * Vocabulary.of(TinyModel()).spread
    assert [each.optimizer.param_groups[0]["lr"] for each in training.trials] == pytest.approx([start / 2, 0.01])


def test_a_resumed_run_is_exact(trainer: Callable[..., Trainer]) -> None:
    whole, first = (trainer(learning_rate="auto") for _ in range(2))
    list(whole.run())
    list(first.run(should_stop=lambda: first.step == 4))
    second = trainer(state=first.state(), learning_rate="auto")
    list(second.run())
    assert torch.equal(second.state().vectors["clip_l"], whole.state().vectors["clip_l"])


@pytest.mark.parametrize("text", ["auto:100", "automatic", "auto, 0.1"])
def test_there_is_no_schedule_of_it(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(learning_rate=text)
    assert caught.value.option == "learning_rate"


def test_the_limit_of_clipping_cannot_be_auto() -> None:
    assert set(problems({"clip_grad": "norm", "clip_grad_limit": "auto"})) == {"clip_grad_limit"}


def test_the_user_learns_what_it_came_to(tmp_path: Path, images: Callable[..., Path]) -> None:
    host, folder = TinyHost(tmp_path), images((16, 16), (16, 16))
    start, said = AUTO_FRACTION * Vocabulary.of(host.model).spread, []
    for name, rate in (("x-word", "auto"), ("y-word", "0.01")):
        embeddings_dir.create(host.embeddings_dir, host.model, name, "thing", 2)
        config = TrainConfig(max_steps=3, learning_rate=rate, width=16, height=16, preview_every=0)
        Session(host, name, folder, config, say=said.append).train()
    assert [each for each in said if "Learning rate" in each] == [
        f"Learning rate auto: {start:.2g} for this model, falling to 0 at step 3."
    ]
