"""An embedding that learns from prompts: its target is what the model predicts for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from fakes import TinyModel

from ti_trainer.config.training import TrainConfig
from ti_trainer.data.dataset import Batch, Dataset
from ti_trainer.errors import ConfigError
from ti_trainer.training.evaluation import fixed_batches, gap_closed
from ti_trainer.training.selection import measure_gap
from ti_trainer.training.step import training_loss
from ti_trainer.training.teacher import Teacher
from ti_trainer.training.trainer import Trainer

if TYPE_CHECKING:
    from ti_trainer.hosts.diffusers.model import DiffusersModel

NOTHING = {"my-word": {"clip_l": torch.zeros(1, 8)}}


@pytest.fixture
def batch(dataset: Callable[..., Dataset]) -> Batch:
    items = dataset((16, 16)).items
    return next(fixed_batches(items, ["a photo of my-word, at night"], 1000))


def asked(teacher: Teacher, batch: Batch, *prompts: str) -> list[str]:
    """The prompts that the model is given."""

    class Model(TinyModel):
        def encode_prompts(self, prompts, embeddings):
            found.extend(prompts)
            return super().encode_prompts(prompts, embeddings)

    found: list[str] = []
    teacher(
        Model(), batch.latents[: len(prompts)], replace(batch, prompts=prompts, timesteps=batch.timesteps[: len(prompts)])
    )
    return found


def test_the_prompt_stands_in_place_of_the_name(batch: Batch) -> None:
    teacher = Teacher("my-word", "a red star, big")
    assert asked(teacher, batch, "a photo of my-word, at night") == ["a photo of a red star, big, at night"]
    assert asked(teacher, batch, "MY-WORD") == ["a red star, big"]
    assert asked(teacher, batch, "my-words") == ["my-words"]


def test_the_sign_of_the_weight_chooses_between_opposite_prompts(batch: Batch) -> None:
    teacher = Teacher("my-word", "big", "small")
    assert asked(teacher, batch, "a star, (my-word:1)") == ["a star, big"]
    assert asked(teacher, batch, "a star, (my-word:-1)") == ["a star, small"]


def test_a_prompt_is_given_without_the_name(batch: Batch) -> None:
    teacher = Teacher("my-word", "big", "small")
    assert teacher.without_name("a star, (my-word:-1.5), on sand") == "a star, on sand"
    assert teacher.without_name("my-word") == ""


def test_the_loss_is_zero_for_the_prompt_itself(embedded_model: DiffusersModel, dataset: Callable[..., Dataset]) -> None:
    items = dataset((32, 32), model=embedded_model).items
    itself = {"my-word": embedded_model.token_embeddings("red star")}
    batch = next(fixed_batches(items, ["a picture of my-word"], len(embedded_model.alphas_cumprod)))
    with embedded_model.training():
        loss = training_loss(embedded_model, batch, itself, teacher=Teacher("my-word", "red star"))
        other = training_loss(embedded_model, batch, itself, teacher=Teacher("my-word", "blue star"))
        closed = gap_closed(embedded_model, items, ["a picture of my-word"], itself, Teacher("my-word", "red star"))
    assert loss.max() < 1e-9
    assert other.min() > 1e-5
    assert closed > 0.9999


def test_training_closes_the_gap(
    embedded_model: DiffusersModel, dataset: Callable[..., Dataset], trainer: Callable[..., Trainer]
) -> None:
    data = dataset((64, 64), model=embedded_model)
    learning = trainer(embedded_model, data, max_steps=30, teacher_prompt="a red star on sand", lr_scheduler="linear")
    before = measure_gap(learning)
    list(learning.run())
    after = measure_gap(learning)
    assert before is not None
    assert after is not None
    assert after > max(before, 0) + 0.2


@pytest.mark.parametrize("options", [{"opposite_prompt": "small"}, {"teacher_prompt": "big", "negative": True}])
def test_what_contradicts_it_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**options)
    assert caught.value.option in ("opposite_prompt", "teacher_prompt")
