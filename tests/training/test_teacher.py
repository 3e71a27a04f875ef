"""An embedding that learns from prompts: its target is what the model predicts for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from fakes import TinyModel

from ti_trainer.config.training import TrainConfig
from ti_trainer.data.dataset import Batch, Dataset
from ti_trainer.errors import ConfigError
from ti_trainer.lora import Lora, LoraLayer
from ti_trainer.training.evaluation import fixed_batches, gap_closed
from ti_trainer.training.selection import measure_gaps
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


def test_each_of_a_pair_has_a_prompt_of_its_own(batch: Batch) -> None:
    teacher = Teacher("my-word", "big, my-word-neg", negative_prompt="ugly, my-word")
    assert asked(teacher, batch, "a star, my-word") == ["a star, big, my-word-neg"]
    assert asked(teacher, batch, "a star, (My-Word-neg:1.5)") == ["a star, ugly, my-word"]
    assert teacher.without_name("my-word-neg, blurry") == "blurry"
    assert asked(Teacher("my-word", "big"), batch, "my-word-neg") == ["my-word-neg"]


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
    before = measure_gaps(learning).get("x-word")
    list(learning.run())
    after = measure_gaps(learning).get("x-word")
    assert before is not None
    assert after is not None
    assert after > max(before, 0) + 0.2


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"opposite_prompt": "small"}, "opposite_prompt"),
        ({"teacher_prompt": "big", "negative": True}, "teacher_prompt"),
        ({"teacher_negative_prompt": "ugly"}, "teacher_negative_prompt"),
        ({"teacher_prompt": "a", "teacher_negative_prompt": "b", "opposite_prompt": "c"}, "teacher_negative_prompt"),
        ({"teacher_prompt": "a", "teacher_negative_prompt": "b", "teacher_lora": "c"}, "teacher_negative_prompt"),
        ({"teacher_lora": "a.safetensors", "reconstruction_weight": 1.0}, "teacher_lora"),
        ({"teacher_lora": "a.safetensors", "teacher_prompt": "big", "opposite_prompt": "small"}, "opposite_prompt"),
    ],
)
def test_what_contradicts_it_is_refused(options: dict[str, object], name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**options)
    assert caught.value.option == name


LORA = Lora("strong", {("unet", "x"): LoraLayer(np.full((1, 8), 2.0, np.float32), np.ones((8, 1), np.float32), 1.0)})


def test_a_lora_changes_the_target_and_the_prompt_may_be_empty(batch: Batch) -> None:
    model = TinyModel()
    teacher = Teacher("my-word", "", lora=LORA, lora_weight=0.5)
    assert teacher.in_full("a photo of my-word, at night") == "a photo of, at night"
    without = Teacher("my-word", "")(model, batch.latents, batch)
    taught = teacher(model, batch.latents, batch)
    assert (taught - without).abs().max() > 0.01
    model.out += 1.0  # what the LoRA does here at this weight
    assert torch.equal(Teacher("my-word", "")(model, batch.latents, batch), taught)
    assert (Teacher("w", "big", lora=LORA).label, teacher.label) == ("big <lora:strong:1>", "<lora:strong:0.5>")


def test_the_gap_to_a_lora_is_that_of_the_model_without_it(dataset: Callable[..., Dataset]) -> None:
    model, items, word = TinyModel(), dataset((16, 16)).items, {"my-word": {"clip_l": torch.zeros(1, 8)}}
    with model.training():
        itself = gap_closed(model, items, ["my-word"], NOTHING, Teacher("my-word", "", lora=LORA))
        same = gap_closed(model, items, ["a my-word"], word, Teacher("my-word", "", lora=LORA, lora_weight=0.0))
    assert itself < 0.9
    assert same <= 0


def test_a_teacher_without_the_lora_that_the_options_name_is_an_error() -> None:
    with pytest.raises(ValueError, match="is missing"):
        Teacher.of(TrainConfig(teacher_lora="a.safetensors"), "my-word")


def test_training_closes_the_gap_to_a_lora(
    embedded_model: DiffusersModel, dataset: Callable[..., Dataset], trainer: Callable[..., Trainer]
) -> None:
    layers = {}
    for name, module in embedded_model.unet.named_modules():
        if name.endswith("attn2.to_v"):  # as if the text were another
            generator = torch.Generator().manual_seed(3)
            down, up = (
                torch.randn(2, module.in_features, generator=generator),
                torch.randn(module.out_features, 2, generator=generator),
            )
            layers["unet", name.replace(".", "_")] = LoraLayer(down.numpy(), up.numpy() * 0.02, 1.0)
    data = dataset((32, 32), model=embedded_model)
    learning = trainer(
        embedded_model,
        data,
        max_steps=20,
        teacher_lora="a.safetensors",
        teacher_prompt="a red star",
        lr_scheduler="linear",
        lora=Lora("a", layers),
    )
    before = measure_gaps(learning).get("x-word")
    list(learning.run())
    after = measure_gaps(learning).get("x-word")
    assert before is not None
    assert after is not None
    assert after > max(before, 0) + 0.1
