"""Before the first step with a teacher, the vectors are fitted to the U-Net's cross-attention for its prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch

from ti_trainer.data.dataset import Dataset
from ti_trainer.embedding import initial_vectors
from ti_trainer.training import attention_matching
from ti_trainer.training.attention_matching import AttentionMatching
from ti_trainer.training.evaluation import fixed_batches, gap_closed
from ti_trainer.training.events import Finished, Fitting
from ti_trainer.training.teacher import Teacher
from ti_trainer.training.trainer import Trainer

if TYPE_CHECKING:
    from ti_trainer.hosts.diffusers.model import DiffusersModel

PROMPT = "a picture of a red square and a small blue circle on the left on grass"


def matching_of(model: DiffusersModel, dataset: Callable[..., Dataset], teacher: Teacher, *prompts: str):
    items = dataset(*[(64, 64)] * len(prompts), model=model).items
    return AttentionMatching.of(model, teacher, fixed_batches(items, prompts, 1000), seed=0), items


def test_the_prompt_itself_has_no_loss_and_fitting_closes_the_gap(
    embedded_model: DiffusersModel, dataset: Callable[..., Dataset]
) -> None:
    teacher = Teacher("my-word", PROMPT)
    matching, items = matching_of(embedded_model, dataset, teacher, "my-word")
    (goal,) = matching.goals.values()
    tokens = embedded_model.token_embeddings(PROMPT)["clip_l"]
    exact = goal.loss(matching.layers, embedded_model.encode_prompts(["my-word"], {"my-word": {"clip_l": tokens}}))
    nothing = goal.loss(matching.layers, embedded_model.encode_prompts([""], {}))
    assert exact < 1e-6
    assert abs(nothing - 1) < 1e-4
    vectors = {"my-word": {"clip_l": initial_vectors(tokens, 4).requires_grad_()}}
    before = gap_closed(embedded_model, items, ["my-word"], vectors, teacher)
    matching.fit(embedded_model, vectors, 40, 0.0083)
    after = gap_closed(embedded_model, items, ["my-word"], vectors, teacher)
    assert after > 0.5 > before


def test_both_of_a_companion_set_are_fitted(embedded_model: DiffusersModel, dataset: Callable[..., Dataset]) -> None:
    teacher, names = Teacher("my-word", "red star", negative_prompt="blue ring"), ("my-word", "my-word-neg")
    matching, _ = matching_of(embedded_model, dataset, teacher, *names)
    assert tuple(matching.goals) == names
    vectors = {each: {"clip_l": torch.zeros(2, 64, requires_grad=True)} for each in names}
    matching.fit(embedded_model, vectors, 2, 0.0083)
    assert all(each["clip_l"].abs().min() > 0 for each in vectors.values())


def test_a_run_matches_before_its_first_step_and_not_when_it_is_resumed(
    embedded_model: DiffusersModel, dataset: Callable[..., Dataset], trainer: Callable[..., Trainer]
) -> None:
    data = dataset((32, 32), model=embedded_model)
    options = {"teacher_prompt": "red star", "learning_rate": "1e-9"}
    made = trainer(embedded_model, data, max_steps=1, ema_rate=0.9, **options)
    before = made.embedding.vectors["clip_l"]
    list(made.run())
    after = made.embedding.vectors["clip_l"]
    assert (after - before).abs().min() > 1e-3
    assert torch.allclose(made.copies[1].vectors["clip_l"], after), "the average starts at what was fitted"
    again = trainer(embedded_model, data, made.state(), max_steps=2, **options)
    list(again.run())
    assert torch.allclose(again.embedding.vectors["clip_l"], after)
    looks = iter([False] * 3)  # at the images, and before two of the three updates
    stopped = trainer(embedded_model, data, max_steps=1, ema_rate=0.9, **options)
    assert list(stopped.run(lambda: next(looks, True))) == [Fitting(0), Finished(0, "interrupted")]
    assert torch.equal(stopped.embedding.vectors["clip_l"], before)
    resumed = trainer(embedded_model, data, stopped.state(), max_steps=1, ema_rate=0.9, **options)
    list(resumed.run())
    assert torch.equal(resumed.embedding.vectors["clip_l"], after)
    assert torch.equal(resumed.copies[1].vectors["clip_l"], made.copies[1].vectors["clip_l"])
    assert not trainer(embedded_model, data, optimizer="sphere", **options).matches_attention
    assert not trainer(embedded_model, data, opposite_prompt="blue star", **options).matches_attention
    assert not trainer(embedded_model, data).matches_attention


def test_what_cannot_be_matched_stays_as_it_is(
    embedded_model: DiffusersModel, dataset: Callable[..., Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = Teacher("my-word", "red star")
    matching, _ = matching_of(embedded_model, dataset, teacher, "my-word")
    vectors = {"my-word": {"clip_l": torch.full((2, 64), torch.nan, requires_grad=True)}}
    matching.fit(embedded_model, vectors, 1, 0.0083)
    assert vectors["my-word"]["clip_l"].isnan().all()
    vectors = {"my-word": {"clip_l": torch.zeros(2, 64, requires_grad=True)}}
    matching.fit(embedded_model, vectors, 5, 0.0083, lambda: True)
    assert not vectors["my-word"]["clip_l"].any()
    monkeypatch.setattr(attention_matching, "_copied", lambda *_: torch.zeros(9, dtype=torch.uint8))  # as in 4 bits
    assert matching_of(embedded_model, dataset, teacher, "my-word")[0] is None
