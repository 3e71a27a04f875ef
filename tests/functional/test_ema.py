"""The moving average of vectors: its formula, that it leaves training alone, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import TinyHost, TinyModel

from ti_trainer import formats
from ti_trainer.config.training import TrainConfig
from ti_trainer.data.dataset import Dataset
from ti_trainer.embedding import Embedding
from ti_trainer.formats import embeddings_dir
from ti_trainer.runs.run_folder import Run
from ti_trainer.runs.session import Session
from ti_trainer.training.trainer import StepDone, Trainer

CONFIG = TrainConfig(
    max_steps=6,
    learning_rate="0.005",
    negative=True,
    preview_every=0,
    save_every=3,
    width=16,
    height=16,
    ema_rate=0.5,
)


@pytest.fixture
def train(dataset: Callable[..., Dataset]) -> Callable[..., Trainer]:
    """A trainer of x-word, beginning at numbers that are not all alike."""
    data = dataset()

    def make(**options: object) -> Trainer:
        vectors = torch.linspace(-1, 1, 16).view(2, 8)
        return Trainer(TinyModel(), data, Embedding("x-word", {"clip_l": vectors}), TrainConfig(max_steps=8, **options))

    return make


def numbers(embedding: Embedding) -> np.ndarray:
    return embedding.vectors["clip_l"].numpy().astype(np.float64)


def trajectory(trainer: Trainer) -> list[np.ndarray]:
    begun = numbers(trainer.embedding)
    return [begun, *(numbers(trainer.embedding) for event in trainer.run() if isinstance(event, StepDone))]


def test_the_average_is_that_of_the_vectors_of_every_step_and_leaves_them_alone(train: Callable[..., Trainer]) -> None:
    trainer = train(ema_rate=0.7)
    states = trajectory(trainer)
    np.testing.assert_array_equal(states[-1], trajectory(train())[-1])
    wanted = 0.7**8 * states[0] + sum(0.3 * 0.7 ** (8 - step) * states[step] for step in range(1, 9))
    live, averaged = trainer.copies
    assert (live.name, averaged.name, averaged.step) == ("x-word", "x-word-ema", 8)
    np.testing.assert_allclose(numbers(averaged), wanted, atol=1e-6)
    assert np.abs(numbers(averaged) - numbers(live)).max() > 1e-3


def test_with_an_interval_the_vectors_go_on_from_their_average(train: Callable[..., Trainer]) -> None:
    alone, trainer = train(ema_rate=0.7), train(ema_rate=0.7, ema_every=4)
    free, bound = trajectory(alone), trajectory(trainer)
    for step in range(4):
        np.testing.assert_array_equal(bound[step], free[step])
    average = 0.7**4 * free[0] + sum(0.3 * 0.7 ** (4 - step) * free[step] for step in range(1, 5))
    np.testing.assert_allclose(bound[4], average, atol=1e-6)
    assert np.abs(bound[5] - free[5]).max() > 1e-3
    live, averaged = trainer.copies
    np.testing.assert_array_equal(numbers(live), numbers(averaged))  # it ends at a multiple of the interval


def test_accumulated_batches_average_as_one_large_one(train: Callable[..., Trainer]) -> None:
    one = train(ema_rate=0.9, ema_every=2, batch_size=4)
    several = train(ema_rate=0.9, ema_every=2, batch_size=2, gradient_accumulation_steps=2)
    for trainer in (one, several):
        trajectory(trainer)
    for first, second in zip(one.copies, several.copies, strict=True):
        np.testing.assert_allclose(numbers(first), numbers(second), atol=1e-5)


@pytest.fixture
def host(tmp_path: Path) -> TinyHost:
    host = TinyHost(tmp_path)
    embeddings_dir.create_pair(host.embeddings_dir, host.model, ("x-word", "cat", 2), ("dog", 3))
    return host


def test_both_averages_are_kept_as_copies_and_the_embeddings_are_the_live_ones(host: TinyHost, images: Callable) -> None:
    run = Session(host, "x-word", images((16, 16), (16, 16)), CONFIG).train().run
    assert [step for step, _ in run.copies()] == [step for step, _ in run.copies(averaged=True)] == [3, 6]
    _, averaged = run.copies(averaged=True)[-1]
    beside = run.negative_of(averaged)
    assert beside is not None
    assert (averaged.stem, beside.stem) == ("x-word-ema-6", "x-word-neg-ema-6")
    for name, copy in (("x-word", averaged), ("x-word-neg", beside)):
        live = embeddings_dir.load(host.embeddings_dir, name)[0]
        average = formats.read(copy)
        assert average.num_vectors == live.num_vectors
        assert not np.array_equal(numbers(average), numbers(live))


def test_a_run_goes_on_with_its_average_bit_for_bit(host: TinyHost, tmp_path: Path, images: Callable[..., Path]) -> None:
    folder, config = images((16, 16), (16, 16)), replace(CONFIG, ema_every=4)
    first = Session(host, "x-word", folder, replace(config, max_steps=3)).train().run
    Session(host, "x-word", folder, config, Run.latest(host.log_dir, "x-word")).train()
    whole = TinyHost(tmp_path / "whole")
    embeddings_dir.create_pair(whole.embeddings_dir, whole.model, ("x-word", "cat", 2), ("dog", 3))
    second = Session(whole, "x-word", folder, config).train().run
    for averaged in (False, True):
        for one, other in zip(first.copies(averaged=averaged), second.copies(averaged=averaged), strict=True):
            np.testing.assert_array_equal(numbers(formats.read(one[1])), numbers(formats.read(other[1])))


def test_a_run_that_kept_none_goes_on_with_an_average_from_where_it_is(host: TinyHost, images: Callable) -> None:
    folder, told = images((16, 16), (16, 16)), list[str]()
    Session(host, "x-word", folder, replace(CONFIG, max_steps=3, ema_rate=0.0)).train()
    run = Run.latest(host.log_dir, "x-word")
    assert run.copies(averaged=True) == []
    Session(host, "x-word", folder, CONFIG, run, warn=told.append).train()
    assert [step for step, _ in run.copies(averaged=True)] == [6]
    assert any("ema_rate" in each for each in told)
