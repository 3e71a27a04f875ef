"""The validation loss is the same every time, and smaller is better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from fakes import TinyModel

from ti_trainer.data.dataset import Dataset, Item
from ti_trainer.training.evaluation import NUM_TIMESTEPS, fixed_batches, validation_loss
from ti_trainer.training.step import training_loss
from ti_trainer.training.trainer import Trainer

WORDS = {"x-word": {"clip_l": torch.full((2, 8), 0.1)}}


@pytest.fixture
def items(dataset: Callable[..., Dataset]) -> tuple[Item, ...]:
    return dataset((16, 16), (16, 16)).items


def test_it_does_not_depend_on_what_was_random_before(items: tuple[Item, ...]) -> None:
    first = validation_loss(TinyModel(), items, ["a photo of x-word"] * len(items), WORDS)
    torch.manual_seed(5)
    torch.randn(100)
    assert validation_loss(TinyModel(), items, ["a photo of x-word"] * len(items), WORDS) == first


def test_it_uses_up_no_random_numbers(items: tuple[Item, ...]) -> None:
    before = torch.get_rng_state()
    validation_loss(TinyModel(), items, ["a photo of x-word"] * len(items), WORDS)
    assert torch.equal(torch.get_rng_state(), before)


def test_measuring_during_a_run_does_not_change_the_run(trainer: Callable[..., Trainer], items: tuple[Item, ...]) -> None:
    measured, plain = trainer(), trainer()
    losses = [
        validation_loss(measured.model, items, ["x-word"] * len(items), {"x-word": measured.embedding.vectors})
        for _ in measured.run()
    ]
    list(plain.run())
    assert torch.equal(measured.embedding.vectors["clip_l"], plain.embedding.vectors["clip_l"])
    assert len(set(losses[:-1])) == 10  # the vectors are different every time


def test_timesteps_are_spread_evenly_and_noise_is_never_the_same(items: tuple[Item, ...]) -> None:
    batches = list(fixed_batches(items, ["x-word"] * len(items), 1000))
    assert [batch.timesteps.tolist() for batch in batches] == [[50, 150, 250, 350, 450, 550, 650, 750, 850, 950]] * 2
    assert [len(batch.latents) for batch in batches] == [NUM_TIMESTEPS] * 2
    assert len({each.numpy().tobytes() for batch in batches for each in batch.noise}) == 2 * NUM_TIMESTEPS


@pytest.mark.parametrize("at_once", [1, 3, 10])
def test_it_is_the_same_however_many_samples_memory_holds(items: tuple[Item, ...], at_once: int) -> None:
    counts = [len(batch.latents) for batch in fixed_batches(items, ["x-word"] * 2, 1000, at_once=at_once)]
    assert max(counts) == at_once
    assert sum(counts) == 2 * NUM_TIMESTEPS
    whole, parts = (validation_loss(TinyModel(), items, ["x-word"] * 2, WORDS, at_once=each) for each in (10, at_once))
    assert parts == pytest.approx(whole, rel=1e-6)


def test_masks_weigh_it_as_they_weigh_training(items: tuple[Item, ...]) -> None:
    weight = torch.zeros(1, *items[0].latents.shape[1:])
    weight[..., 0] = 2
    masked = [replace(item, weight=weight) for item in items]
    prompts = ["x-word"] * 2
    elsewhere = [replace(item, latents=item.latents + (weight == 0) * 9) for item in masked]
    found, plain = (validation_loss(TinyModel(), each, prompts, WORDS) for each in (masked, items))
    assert found != plain
    assert validation_loss(TinyModel(), elsewhere, prompts, WORDS) == pytest.approx(found, rel=1e-5)


def test_it_is_the_mean_training_loss_of_all_images(items: tuple[Item, ...]) -> None:
    model = TinyModel()
    each = [training_loss(model, batch, WORDS).mean().item() for batch in fixed_batches(items, ["x-word"] * len(items), 100)]
    assert validation_loss(model, items, ["x-word"] * len(items), WORDS) == pytest.approx(sum(each) / 2, rel=1e-6)


def test_training_lowers_it(trainer: Callable[..., Trainer], dataset: Callable[..., Dataset]) -> None:
    data = dataset(latent_sampling="deterministic")
    run = trainer(data=data, max_steps=150, learning_rate="0.02", batch_size=5)
    items = data.items
    before = validation_loss(run.model, items, ["a photo of x-word"] * len(items), {"x-word": run.embedding.vectors})
    list(run.run())
    assert (
        validation_loss(run.model, items, ["a photo of x-word"] * len(items), {"x-word": run.embedding.vectors})
        < 0.95 * before
    )
