"""When the validation loss is measured, which step is the best, and when a run ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch

from ti_trainer.config.training import TrainConfig
from ti_trainer.data.dataset import Dataset
from ti_trainer.functional.lr_scheduler import LearningRate
from ti_trainer.functional.schedule import Schedule
from ti_trainer.training import early_stopping
from ti_trainer.training.early_stopping import FORWARDS_OF_STEP, Best, EarlyStopping, why_not
from ti_trainer.training.evaluation import NUM_TIMESTEPS, fixed_batches
from ti_trainer.training.events import Finished
from ti_trainer.training.state import TrainState
from ti_trainer.training.trainer import Trainer


def test_measuring_takes_less_than_a_twentieth_of_a_run() -> None:
    for batch, micro_steps in product((1, 2, 3, 4, 8, 32), (1, 2, 4, 8)):
        config = TrainConfig(max_steps=5000, batch_size=batch, gradient_accumulation_steps=micro_steps)
        stopping = EarlyStopping.of(config)
        assert stopping is not None
        assert 0.05 * stopping.every * batch * micro_steps * FORWARDS_OF_STEP > NUM_TIMESTEPS
        assert stopping.every % 25 == 0
        assert stopping.patience < 500, "a run that is done must notice"


def test_it_is_off_where_it_cannot_work_or_would_come_too_late() -> None:
    assert EarlyStopping.of(TrainConfig()) is not None
    for options in ({"stop_when_done": False}, {"trials": 2}, {"reconstruction_weight": 1.0}, {"max_steps": 200}):
        assert EarlyStopping.of(TrainConfig(**options)) is None, options
    assert "several trials" in why_not(TrainConfig(trials=2))
    assert "pixel loss" in why_not(TrainConfig(reconstruction_weight=1.0))
    assert why_not(TrainConfig(negative=True, teacher_prompt="")) == ""


def best_of(*losses: float) -> Best:
    best = None
    for number, loss in enumerate(losses, 1):
        best = Best.after(best, 10 * number, loss, {"clip_l": torch.full((1, 2), float(number))})
    assert best is not None
    return best


def test_the_lowest_loss_is_the_best_but_a_tiny_gain_does_not_prolong_a_run() -> None:
    best = best_of(1.0, 0.8, 0.9, 0.799, 0.798)
    assert (best.step, best.loss, best.improved_at) == (50, 0.798, 20)
    assert best.vectors["clip_l"].unique().item() == 5
    assert best_of(1.0, 0.8, 0.9, 0.799, 0.79).improved_at == 50
    assert best_of(*(0.999**number for number in range(40))).improved_at > 300, "many tiny gains are a large one"


def test_a_rise_is_one_that_lasts() -> None:
    assert best_of(2.0, 1.0, 1.3, 1.2, 1.4).rise == pytest.approx(0.2)
    assert best_of(2.0, 1.0, 9.9, 1.3, 1.2, 1.4).rise == pytest.approx(0.2), "the last ones"
    for losses in ((1.0, 1.3, 1.4), (1.0, 1.3, 1.2, 1.4, 0.9), (1.0, 1.3, 1.0, 1.4)):
        assert best_of(*losses).rise == 0, losses


def test_while_the_rate_falls_only_a_rising_loss_ends_a_run() -> None:
    stopping = EarlyStopping(10)
    flat, rising = best_of(1.0, 1.02, 1.01, 1.03), best_of(1.0, 1.2, 1.3, 1.2)
    constant, falling = (LearningRate(Schedule.parse("0.1", 100), decay, 0, 100) for decay in ("constant", "linear"))
    assert [stopping.ends(each, 40, constant) for each in (flat, rising)] == [True, True]
    assert [stopping.ends(each, 40, falling) for each in (flat, rising)] == [False, True]
    assert not stopping.ends(rising, 39, constant)


def test_the_timesteps_are_dealt_out_to_the_images(dataset: Callable[..., Dataset]) -> None:
    items = dataset(*((16, 16),) * 3).items
    whole = list(fixed_batches(items, ["x-word"] * 3, 100))
    for at_once in (1, 10):
        some = list(fixed_batches(items, ["x-word"] * 3, 100, at_once=at_once, spread=True))
        assert sorted(int(each) for batch in some for each in batch.timesteps) == list(range(5, 100, 10))
        noise = {row.numpy().tobytes() for batch in some for row in batch.noise}
        assert len(noise) == 10
        assert noise <= {row.numpy().tobytes() for batch in whole for row in batch.noise}
        assert {batch.latents[0].numpy().tobytes() for batch in some} == {item.latents.numpy().tobytes() for item in items}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure every 2 steps at batch size 1."""
    monkeypatch.setattr(early_stopping, "SHARE", 2.0)
    monkeypatch.setattr(early_stopping, "ROUND", 2)


def run_with(training: Trainer, losses: dict[int, float]) -> Finished:
    for event in training.run():
        if event.step in losses and not isinstance(event, Finished):
            training.record_loss(losses[event.step])
    assert isinstance(event, Finished)
    return event


def test_a_run_ends_when_nothing_improves_and_keeps_the_best(trainer: Callable[..., Trainer], quick: None) -> None:
    options = {"learning_rate": "0.005"}
    training, plain = trainer(max_steps=30, **options), trainer(max_steps=4, stop_when_done=False, **options)
    end = run_with(training, {2: 3.0, 4: 1.0, 6: 2.0, 8: 1.5, 10: 1.1, 12: 0.1})
    for _ in plain.run():
        pass
    assert (end.step, end.reason, training.ended_early) == (10, "done", True)
    assert training.result[0].step == 4
    assert torch.equal(training.result[0].vectors["clip_l"], plain.embedding.vectors["clip_l"])
    assert training.embedding.step == 10


def test_a_state_holds_the_best_and_a_run_that_had_ended_is_trained_as_long_again(
    trainer: Callable[..., Trainer], quick: None
) -> None:
    first = trainer(max_steps=30)
    run_with(first, {2: 1.0, 4: 2.0, 6: 2.0, 8: 2.0})
    state = TrainState.unpack(*first.state().pack())
    again = trainer(max_steps=30, state=state)
    assert torch.equal(again.result[0].vectors["clip_l"], first.result[0].vectors["clip_l"])
    assert (again.step, again.result[0].step) == (8, 2)
    assert run_with(again, {10: 2.0, 12: 2.0, 14: 2.0}).step == 14
    assert again.result[0].step == 2
    off = trainer(max_steps=30, state=state, stop_when_done=False)
    assert (off.result[0].step, off.best_so_far) == (8, None)
    assert run_with(off, {}).step == 30


@pytest.mark.parametrize(
    "options", [{"lr_scheduler": "linear"}, {"learning_rate": "0.005:20, 0.001"}, {"learning_rate": "auto"}]
)
def test_a_flat_loss_does_not_end_a_run_whose_rate_falls(
    trainer: Callable[..., Trainer], quick: None, options: dict[str, str]
) -> None:
    flat, rising = dict.fromkeys(range(2, 31, 2), 1.0), {number: 1.0 + 0.1 * number for number in range(2, 31, 2)}
    end = 26 if "0.005" in options.get("learning_rate", "") else 30  # the last stage starts at step 21
    assert run_with(trainer(max_steps=30, **options), flat).step == end
    assert run_with(trainer(max_steps=30, **options), rising).step == 8
    assert run_with(trainer(max_steps=30, learning_rate="0.005:20, 0.01"), flat).step == 8


def test_a_run_does_not_wait_for_a_rate_that_hardly_falls(trainer: Callable[..., Trainer], quick: None) -> None:
    flat = dict.fromkeys(range(2, 31, 2), 1.0)
    assert run_with(trainer(max_steps=1000, learning_rate="auto"), flat).step == 8


def test_a_loss_that_is_no_number_is_not_the_best(trainer: Callable[..., Trainer], quick: None) -> None:
    training = trainer(max_steps=10)
    run_with(training, {2: math.nan, 4: 1.0, 6: math.nan, 8: math.inf})
    assert (training.step, training.result[0].step) == (10, 4)
    training = trainer(max_steps=10)
    run_with(training, {2: math.nan})
    assert (training.best_so_far, training.result[0].step) == (None, 10)


def test_at_the_last_step_a_run_is_not_early(trainer: Callable[..., Trainer], quick: None) -> None:
    training = trainer(max_steps=9, learning_rate="0.005")
    assert run_with(training, {2: 1.0, 8: 1.0, 9: 2.0}).reason == "done"
    assert training.step == 8, "patience is over"
    training = trainer(max_steps=9)
    run_with(training, {2: 1.0, 4: 0.5, 9: 2.0})
    assert (training.step, training.ended_early, training.result[0].step) == (9, False, 4)
