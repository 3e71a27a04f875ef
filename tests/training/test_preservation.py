"""Prompt preservation: added phrases, their effect on the target, and what is left as it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from fakes import TinyModel

from ti_trainer.config.training import TrainConfig
from ti_trainer.data.dataset import Batch, Dataset
from ti_trainer.data.phrases import ATTRIBUTES, PLACES, with_phrase
from ti_trainer.embedding import Embedding
from ti_trainer.runs.builders import start_notes
from ti_trainer.training.preservation import Preservation
from ti_trainer.training.step import training_loss
from ti_trainer.training.trainer import Trainer

STAR = {"x-word": TinyModel().token_embeddings("star")}


def phrased(prompt: str, count: int = 40) -> set[str]:
    return {with_phrase(prompt, "x-word", np.random.default_rng(number)) for number in range(count)}


def batch_of(dataset: Callable[..., Dataset], share: float) -> Batch:
    return dataset(prompter={"phrase_share": share}).batch([(0, 0), (1, 1), (2, 2), (3, 3)])


def test_attributes_stand_before_the_name_and_places_at_the_end() -> None:
    found = phrased("a photo of X-Word, at night")
    assert all("X-Word" in each for each in found)
    before = {each.removeprefix("a photo of ").split("X-Word")[0].strip() for each in found}
    assert "" in before
    assert len(before) > 5
    assert before <= {"", *ATTRIBUTES}
    assert any(each.endswith(f"night {place}") for each in found for place in PLACES)
    assert any(each.endswith(f"night, {place}") for each in found for place in PLACES)


@pytest.mark.parametrize("start", ["a house in the style of ", "a house, art by ", "a painting by ("])
def test_a_style_gets_no_attribute(start: str) -> None:
    assert all(each.startswith(f"{start}x-word") for each in phrased(f"{start}x-word"))


def test_only_prompts_change(dataset: Callable[..., Dataset]) -> None:
    """So a sample's noise and timestep do not depend on the option."""
    without, all_of_them = batch_of(dataset, 0.0), batch_of(dataset, 1.0)
    assert without.plain_prompts == ()
    assert all_of_them.plain_prompts == without.prompts == all_of_them.prompts_without_phrases
    assert all(long != short for long, short in zip(all_of_them.prompts, without.prompts, strict=True))
    for name in ("latents", "noise", "timesteps"):
        assert torch.equal(getattr(without, name), getattr(all_of_them, name))


def test_the_share_of_phrases(dataset: Callable[..., Dataset]) -> None:
    data = dataset(prompter={"phrase_share": 0.3})
    plain = [data.batch([(number, 0)]).plain_prompts for number in range(200)]
    assert 40 <= sum(each != () for each in plain) <= 80


def test_the_initial_text_itself_has_the_loss_of_the_prompt_without_the_phrase(dataset: Callable[..., Dataset]) -> None:
    model, batch = TinyModel(), batch_of(dataset, 0.5)
    plain = batch_of(dataset, 0.0)
    assert 0 < sum(each is not None for each in batch.plain_prompts) < 4
    with_phrases = training_loss(model, batch, STAR, teacher=Preservation("x-word", ["star"]))
    torch.testing.assert_close(with_phrases, training_loss(model, plain, STAR))


def test_samples_do_not_depend_on_the_others_of_their_batch(dataset: Callable[..., Dataset]) -> None:
    """So gradient accumulation gives the same result as a larger batch."""
    data, objective = dataset(prompter={"phrase_share": 0.5}), Preservation("x-word", ["star"])
    word = {"x-word": TinyModel().token_embeddings("heart")}
    together = training_loss(TinyModel(), batch_of(dataset, 0.5), word, teacher=objective)
    singly = [training_loss(TinyModel(), data.batch([(each, each)]), word, teacher=objective) for each in range(4)]
    torch.testing.assert_close(together, torch.cat(singly))


def test_another_word_is_asked_to_react_as_the_initial_text_does(dataset: Callable[..., Dataset]) -> None:
    model, batch, plain = TinyModel(), batch_of(dataset, 1.0), batch_of(dataset, 0.0)
    noisy = torch.zeros_like(batch.latents)

    def predicted(prompts: tuple[str, ...]) -> torch.Tensor:
        cond = model.encode_prompts([each.replace("x-word", "star") for each in prompts], {})
        return model.predict(noisy, batch.timesteps, cond, batch.images)

    found = Preservation("x-word", ["star"])(model, noisy, batch)
    torch.testing.assert_close(found, batch.noise + predicted(batch.prompts) - predicted(plain.prompts))


def test_each_trial_is_asked_to_react_as_its_own_initial_text_does(
    dataset: Callable[..., Dataset], trainer: Callable[..., Trainer]
) -> None:
    class Listening(TinyModel):
        heard: ClassVar[list[str]] = []

        def encode_prompts(self, prompts: Sequence[str], embeddings: Any) -> Any:
            self.heard += () if embeddings else prompts
            return super().encode_prompts(prompts, embeddings)

    data, model = dataset(prompter={"phrase_share": 1.0}), Listening()
    run = trainer(model, data, max_steps=1, trials=2, trial_init_texts="star; a heart (red:1.5)")
    assert "initial text" not in " ".join(start_notes(run, run.embedding))
    model.heard.clear()
    list(run.run())
    assert not any("x-word" in each for each in model.heard)
    assert any("star" in each for each in model.heard)
    assert any(r"a heart \(red:1.5\)" in each for each in model.heard), "an initial text is not a prompt"


def test_a_pixel_loss_does_not_unlearn_what_phrases_change(dataset: Callable[..., Dataset]) -> None:
    """Pixels are those of the image, which shows no phrase."""
    model, asked = TinyModel(), []

    def pixel_loss(_model: Any, estimate: torch.Tensor, _batch: Batch) -> torch.Tensor:
        asked.append(estimate)
        return estimate.new_zeros(len(estimate))

    for share in (0.0, 1.0):
        preservation = Preservation("x-word", ["star"])
        training_loss(model, batch_of(dataset, share), STAR, None, pixel_loss, teacher=preservation)  # type: ignore[arg-type]
    torch.testing.assert_close(asked[1], asked[0])


def test_samples_without_a_phrase_cost_nothing_more(dataset: Callable[..., Dataset]) -> None:
    class Counting(TinyModel):
        rows = 0

        def predict(self, noisy_latents: Any, *others: Any) -> Any:
            self.rows += len(noisy_latents)
            return super().predict(noisy_latents, *others)

    model, batch = Counting(), batch_of(dataset, 0.5)
    training_loss(model, batch, STAR, teacher=Preservation("x-word", ["star"]))
    assert model.rows == 4 + 2 * sum(each is not None for each in batch.plain_prompts)


@pytest.mark.parametrize("options", [{"negative": True}, {"teacher_prompt": "a red star"}, {"prompt_preservation": 0.0}])
def test_where_it_is_not_used(options: dict[str, Any]) -> None:
    config = TrainConfig(**options)
    assert config.phrase_share == 0
    assert Preservation.of(config, Embedding("x-word", STAR["x-word"])) is None


def test_an_embedding_without_an_initial_text_is_reported(trainer: Callable[..., Trainer]) -> None:
    run = trainer(max_steps=2)
    notes = " ".join(start_notes(run, run.embedding))
    assert "x-word has no initial text" in notes
    teaching = trainer(max_steps=2, teacher_prompt="a red star")
    assert "Prompt preservation is not used when learning from a prompt" in " ".join(start_notes(teaching, run.embedding))
    off = trainer(max_steps=2, prompt_preservation=0.0)
    assert "initial text" not in " ".join(start_notes(off, off.embedding))


def test_prompts_of_previews_have_no_phrases(trainer: Callable[..., Trainer], dataset: Callable[..., Dataset]) -> None:
    run = trainer(data=dataset(prompter={"phrase_share": 1.0}), max_steps=4)
    shown = [each for event in run.run() for each in getattr(event, "prompts", ())]
    assert shown
    assert not any(each.endswith(PLACES) for each in shown)
