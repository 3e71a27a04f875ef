"""Prompt preservation: added phrases, their effect on the target, and what is left as it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from fakes import TinyModel

from ti_trainer.config.training import TrainConfig
from ti_trainer.data.dataset import Batch, Dataset
from ti_trainer.data.phrases import ATTRIBUTES, COMMAS, PLACES, with_phrase
from ti_trainer.data.repeated import RepeatedSamples
from ti_trainer.runs.start_notes import start_notes
from ti_trainer.training import preservation as preservation_module
from ti_trainer.training.preservation import Preservation
from ti_trainer.training.step import training_loss
from ti_trainer.training.trainer import Trainer

STAR = {"x-word": TinyModel().token_embeddings("star")}


def phrased(prompt: str, count: int = 60, seed: int = 0) -> list[str]:
    return [with_phrase(prompt, "x-word", number, (seed, 0)) for number in range(count)]


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


def test_few_phrases_are_different_ones() -> None:
    """Chance would repeat some of a few, and leave out most colours."""
    few = phrased("a photo of x-word", len(ATTRIBUTES))
    assert len(set(few)) == len(few)
    attributes = [each.removeprefix("a photo of ").split("x-word")[0].strip() for each in few]
    assert len(set(attributes) - {""}) == len(attributes) - attributes.count("") >= 10
    assert sum(each.endswith(PLACES) for each in few) >= 10
    assert few != phrased("a photo of x-word", len(ATTRIBUTES), seed=1)
    all_of_them = " ".join(phrased("a photo of x-word", 3 * len(ATTRIBUTES)))
    assert all(f"{each} x-word" in all_of_them for each in ATTRIBUTES)


def test_every_place_follows_a_comma_or_none() -> None:
    found = set(phrased("art by x-word", COMMAS * len(PLACES)))
    assert found == {f"art by x-word{joint}{place}" for place in PLACES for joint in (", ", " ")}


@pytest.mark.parametrize(
    "start",
    ["a house in the style of ", "a house, art by ", "a painting by (", "a drawing in the manner of ", "a sketch as "],
)
def test_a_style_gets_no_attribute(start: str) -> None:
    assert all(each.startswith(f"{start}x-word") for each in phrased(f"{start}x-word"))


def test_other_samples_stay_as_they_are(dataset: Callable[..., Dataset]) -> None:
    """So their noise and timesteps do not depend on the option, nor do the images of any."""
    without, half = batch_of(dataset, 0.0), batch_of(dataset, 0.5)
    assert without.phrases == ()
    kept = [row for row, phrase in enumerate(half.phrases) if phrase is None]
    assert 0 < len(kept) < 4
    for row in kept:
        assert half.prompts[row] == without.prompts[row]
        for name in ("noise", "timesteps"):
            assert torch.equal(getattr(half, name)[row], getattr(without, name)[row])
    assert torch.equal(half.latents, without.latents)
    assert torch.equal(half.images.sizes, without.images.sizes)


def test_samples_with_phrases_are_repeated(dataset: Callable[..., Dataset]) -> None:
    """All of a period come from a few, of which each is the same every time; the next period has others."""
    data = dataset(prompter={"phrase_share": 1.0})
    few, period = data.repeated_samples.in_a_period, data.repeated_samples.period
    assert (len(data.items), few, period) == (5, 55, 55 * 32)
    batches = [data.batch([(number, number % 5)]) for number in range(2 * period)]
    seen: dict[int, Batch] = {}
    for batch in batches:
        phrase = batch.phrases[0]
        assert phrase is not None
        first = seen.setdefault(phrase.sample, batch)
        assert (batch.prompts, batch.phrases) == (first.prompts, first.phrases)
        assert all(torch.equal(getattr(batch, name), getattr(first, name)) for name in ("latents", "noise", "timesteps"))
    assert set(seen) == set(range(2 * few))
    assert {each.phrases[0].sample for each in batches[:period] if each.phrases[0]} == set(range(few))
    assert len({float(each.noise[0, 0, 0, 0]) for each in seen.values()}) == 2 * few
    other_trial = data.batch([(0, 0)], [1])
    assert other_trial.phrases[0] != batches[0].phrases[0]


@pytest.mark.parametrize(("images", "of_each"), [(1, 256), (4, 16), (8, 4), (9, 4), (32, 1), (100, 1)])
def test_repeated_samples_are_spread_evenly(images: int, of_each: int) -> None:
    """With few of them, chance would have most of the timesteps where little is to be learned."""
    samples, rng = RepeatedSamples(images), np.random.default_rng(0)
    assert samples.in_a_period == of_each * images
    numbers = [{samples.number_for(0, image, rng) for _ in range(12 * of_each)} for image in range(images)]
    assert [len(each) for each in numbers] == [of_each] * images
    every = sorted(set().union(*numbers))
    assert every == list(range(of_each * images))
    assert samples.number_for(samples.period, 0, rng) >= len(every), "others in the next period"
    for drawn in (0, 999):
        times = sorted(samples.timestep_of(each, drawn, 1000, (5, 0)) for each in every)
        assert times == [(part * 1000 + drawn) // len(every) for part in range(len(every))]
    assert times[-1] == 999
    parts = [[samples.timestep_of(start + each, 0, 1000, (5, 0)) for each in every] for start in (0, len(every))]
    assert parts[0] != parts[1], "another order in the next period"


def test_regularisation_images_get_no_phrase(dataset: Callable[..., Dataset]) -> None:
    data = dataset(prompter={"phrase_share": 1.0})
    reg = replace(data.items[0], subset=replace(data.items[0].subset, is_reg=True))
    both = replace(data, items=(reg, *data.items[1:]))
    assert both.batch([(0, 0)]).phrases == ()
    assert both.batch([(0, 1)]).phrases[0] is not None
    few = both.repeated_samples.in_a_period
    assert few == 64 == 16 * (len(data.items) - 1)
    numbers = {each.sample for n in range(400) for each in both.batch([(n, 1), (n, 4)]).phrases if each is not None}
    assert numbers == {*range(16), *range(few - 16, few)}


def test_the_share_of_phrases(dataset: Callable[..., Dataset]) -> None:
    data = dataset(prompter={"phrase_share": 0.3})
    plain = [data.batch([(number, 0)]).phrases for number in range(200)]
    assert 40 <= sum(each != () for each in plain) <= 80


def test_the_initial_text_itself_has_the_loss_of_the_prompt_without_the_phrase(dataset: Callable[..., Dataset]) -> None:
    model, batch = TinyModel(), batch_of(dataset, 0.5)
    plain = replace(batch, prompts=batch.prompts_without_phrases, phrases=())
    assert 0 < sum(each is not None for each in batch.phrases) < 4
    with_phrases = training_loss(model, batch, STAR, teacher=Preservation("x-word", {0: "star"}, 32))
    torch.testing.assert_close(with_phrases, training_loss(model, plain, STAR))


def test_samples_do_not_depend_on_the_others_of_their_batch(dataset: Callable[..., Dataset]) -> None:
    """So gradient accumulation gives the same result as a larger batch."""
    data, objective = dataset(prompter={"phrase_share": 0.5}), Preservation("x-word", {0: "star"}, 32)
    word = {"x-word": TinyModel().token_embeddings("heart")}
    together = training_loss(TinyModel(), batch_of(dataset, 0.5), word, teacher=objective)
    singly = [training_loss(TinyModel(), data.batch([(each, each)]), word, teacher=objective) for each in range(4)]
    torch.testing.assert_close(together, torch.cat(singly))


def test_trials_do_not_depend_on_each_other(dataset: Callable[..., Dataset]) -> None:
    """Although their samples have the same numbers."""
    data, texts, samples = (
        dataset(prompter={"phrase_share": 1.0}),
        {0: "star", 1: "heart"},
        [(each, 0) for each in range(20)],
    )
    together = data.batch(samples, [0, 1])
    numbers = [{each.sample for each in part if each is not None} for part in (together.phrases[:20], together.phrases[20:])]
    assert numbers[0] & numbers[1]
    losses = training_loss(TinyModel(), together, [STAR, STAR], teacher=Preservation("x-word", texts, 32))
    alone = [
        training_loss(TinyModel(), data.batch(samples, [stream]), STAR, teacher=Preservation("x-word", {stream: text}, 32))
        for stream, text in texts.items()
    ]
    torch.testing.assert_close(losses, torch.cat(alone))


def test_another_word_is_asked_to_react_as_the_initial_text_does(dataset: Callable[..., Dataset]) -> None:
    model, batch = TinyModel(), batch_of(dataset, 1.0)
    noisy = torch.zeros_like(batch.latents)

    def predicted(prompts: tuple[str, ...]) -> torch.Tensor:
        cond = model.encode_prompts([each.replace("x-word", "star") for each in prompts], {})
        return model.predict(noisy, batch.timesteps, cond, batch.images)

    found = Preservation("x-word", {0: "star"}, 32)(model, noisy, batch)
    torch.testing.assert_close(found, batch.noise + predicted(batch.prompts) - predicted(batch.prompts_without_phrases))


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

    batch = batch_of(dataset, 1.0)
    for each in (batch, replace(batch, prompts=batch.prompts_without_phrases, phrases=())):
        preservation = Preservation("x-word", {0: "star"}, 32)
        training_loss(model, each, STAR, None, pixel_loss, teacher=preservation)  # type: ignore[arg-type]
    torch.testing.assert_close(asked[1], asked[0])


class Counting(TinyModel):
    rows = 0

    def predict(self, noisy_latents: Any, *others: Any) -> Any:
        self.rows += len(noisy_latents)
        return super().predict(noisy_latents, *others)


def test_only_the_first_use_of_a_sample_costs_more(dataset: Callable[..., Dataset]) -> None:
    model, batch, preservation = Counting(), batch_of(dataset, 0.5), Preservation("x-word", {0: "star"}, 32)
    losses = []
    for expected in (4 + 2 * len({each for each in batch.phrases if each is not None}), 4):
        model.rows = 0
        losses.append(training_loss(model, batch, STAR, teacher=preservation))
        assert model.rows == expected
    assert torch.equal(*losses)


@pytest.mark.parametrize(("most", "kept"), [(2048, 2 * 32), (10, 10)])
def test_a_long_run_keeps_few_targets(
    dataset: Callable[..., Dataset], monkeypatch: pytest.MonkeyPatch, most: int, kept: int
) -> None:
    monkeypatch.setattr(preservation_module, "MOST_CHANGES", most)
    data, preservation, model = dataset(prompter={"phrase_share": 1.0}), Preservation("x-word", {0: "star"}, 32), Counting()
    for number in range(0, 40 * 32 * 35, 32 * 5):
        training_loss(model, data.batch([(number, 0)]), STAR, teacher=preservation)
    assert len(preservation._changes) == kept


@pytest.mark.parametrize("options", [{"negative": True}, {"teacher_prompt": "a red star"}, {"prompt_preservation": 0.0}])
def test_where_it_is_not_used(options: dict[str, Any]) -> None:
    config = TrainConfig(**options)
    assert config.phrase_share == 0


def test_an_embedding_without_an_initial_text_is_reported(trainer: Callable[..., Trainer]) -> None:
    run = trainer(max_steps=2)
    for text in (None, "", "  "):
        run.trials[0].status = replace(run.trials[0].status, init_text=text)
        assert "x-word has no initial text" in " ".join(start_notes(run, run.embedding))
    teaching = trainer(max_steps=2, teacher_prompt="a red star")
    assert "Prompt preservation is not used when learning from a prompt" in " ".join(start_notes(teaching, run.embedding))
    off = trainer(max_steps=2, prompt_preservation=0.0)
    assert "initial text" not in " ".join(start_notes(off, off.embedding))


def test_prompts_of_previews_have_no_phrases(trainer: Callable[..., Trainer], dataset: Callable[..., Dataset]) -> None:
    run = trainer(data=dataset(prompter={"phrase_share": 1.0}), max_steps=4)
    shown = [each for event in run.run() for each in getattr(event, "prompts", ())]
    assert shown
    assert not any(each.endswith(PLACES) for each in shown)
