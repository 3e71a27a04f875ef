"""The loop: the same seed gives the same run, only the vectors change, and what cannot go well ends with what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
import torch
from fakes import TinyModel
from torch import Tensor

from ti_trainer.data.dataset import Dataset
from ti_trainer.errors import ConfigError, TrainingError
from ti_trainer.model import Conditioning
from ti_trainer.training.trainer import CHECK_EVERY, Finished, StepDone, Trainer

if TYPE_CHECKING:
    from ti_trainer.hosts.diffusers.model import DiffusersModel


def vectors(trainer: Trainer) -> Tensor:
    return trainer.state().vectors["clip_l"]


def trained(trainer: Trainer) -> Tensor:
    list(trainer.run())
    return vectors(trainer)


TAGS = {"shuffle_tags": True, "tag_dropout": 0.3}


def test_the_same_seed_gives_the_same_run(trainer: Callable[..., Trainer], dataset: Callable[..., Dataset]) -> None:
    options = {"latent_sampling": "random", "prompter": TAGS}
    first = trained(trainer(data=dataset(seed=3, **options), seed=3))
    torch.manual_seed(77)
    assert torch.equal(trained(trainer(data=dataset(seed=3, **options), seed=3)), first)
    assert not torch.equal(trained(trainer(data=dataset(seed=4, **options), seed=4)), first)


def test_the_processes_random_numbers_are_not_used(trainer: Callable[..., Trainer], dataset: Callable[..., Dataset]) -> None:
    before = torch.get_rng_state()
    trained(trainer(data=dataset(latent_sampling="random", prompter=TAGS)))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_step_is_a_completed_update(trainer: Callable[..., Trainer]) -> None:
    training = trainer(max_steps=4, gradient_accumulation_steps=3)
    for number, event in enumerate(training.run(), 1):
        if isinstance(event, StepDone):
            assert event.step == training.step == training.embedding.step == number
            assert training.micro_step == 3 * number
    assert event == Finished(4, "done")
    assert training.trials[0].optimizer.state_dict()["state"][0]["step"] == 4


def test_nothing_but_the_vectors_is_optimised(trainer: Callable[..., Trainer]) -> None:
    parameters = [each for group in trainer().trials[0].optimizer.param_groups for each in group["params"]]
    assert [each.shape for each in parameters] == [(2, 8)]
    assert parameters[0].dtype == torch.float32
    assert {group["weight_decay"] for group in trainer().trials[0].optimizer.param_groups} == {0.0}


def test_the_embedding_that_was_given_stays_as_it_is(trainer: Callable[..., Trainer]) -> None:
    training = trainer()
    before = training._embeddings[0].vectors["clip_l"].clone()
    after = trained(training)
    assert torch.equal(training._embeddings[0].vectors["clip_l"], before)
    assert not torch.equal(after, before)
    kept = training.embedding.vectors["clip_l"]
    assert not kept.requires_grad
    kept += 1
    assert torch.equal(vectors(training), after)


def weights(model: DiffusersModel) -> Iterator[tuple[str, Tensor]]:
    for number, module in enumerate(model.modules):
        yield from ((f"{number}.{name}", each) for name, each in (*module.named_parameters(), *module.named_buffers()))


def fails_watching(trainer: Trainer) -> None:
    for _ in trainer.run():
        raise ZeroDivisionError


@pytest.mark.parametrize("ending", ["done", "interrupted", "error", "left"])
def test_only_the_vectors_change(
    ending: str, embedded_model: DiffusersModel, trainer: Callable[..., Trainer], dataset: Callable[..., Dataset]
) -> None:
    model = embedded_model
    data = dataset((32, 32), model=model)
    model.unet.train()  # as a host may have left it
    model.text_encoders[0].module.final_marker = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
    before = {name: (each.detach().clone(), each.requires_grad) for name, each in weights(model)}
    modes = {module: module.training for part in model.modules for module in part.modules()}
    assert {requires_grad for _, requires_grad in before.values()} == {True, False}
    training = trainer(model, data, max_steps=2)
    start = vectors(training)
    try:
        if ending == "error":
            with pytest.raises(ZeroDivisionError):
                fails_watching(training)
        elif ending == "left":
            next(iter(training.run()))  # the loop is dropped half way
        else:
            list(training.run(should_stop=lambda: ending == "interrupted" and training.step == 1))
        assert not torch.equal(vectors(training), start)
        for name, each in weights(model):
            assert torch.equal(each, before[name][0]), name
            assert each.requires_grad == before[name][1], name
            assert each.grad is None, name
        assert {module: module.training for module in modes} == modes
        assert not model.text_encoders[0].table._forward_hooks
    finally:
        del model.text_encoders[0].module.final_marker
        model.unet.eval()


def test_while_training_the_network_is_frozen(embedded_model: DiffusersModel) -> None:
    with embedded_model.training():
        assert not any(each.requires_grad for _, each in weights(embedded_model))
        assert not embedded_model.unet.training


class BreaksAfter(TinyModel):
    """Predicts NaN from the call given on."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls = calls

    def predict(self, *given: Any) -> Tensor:
        self.calls -= 1
        return super().predict(*given) * (1 if self.calls >= 0 else float("nan"))


@pytest.mark.parametrize(("calls", "good"), [(0, 0), (9, 0), (15, 10), (10, 10), (29, 20)])
def test_a_loss_that_is_no_number_ends_the_run_with_the_last_good_vectors(
    trainer: Callable[..., Trainer], calls: int, good: int
) -> None:
    assert CHECK_EVERY == 10
    training = trainer(BreaksAfter(calls), max_steps=40)
    with pytest.raises(TrainingError, match=f"not a finite number.*back at step {good}.*Lower the learning rate or clip"):
        list(training.run())
    assert training.step == training.embedding.step == good
    reference = trainer(max_steps=40)
    list(reference.run(should_stop=lambda: reference.step == good))
    assert torch.equal(vectors(training), vectors(reference))
    assert training.state().micro_step == reference.micro_step
    assert not training.model.in_training


def test_a_run_that_ends_between_checks_is_checked_too(trainer: Callable[..., Trainer]) -> None:
    for options in ({"max_steps": 14}, {"max_steps": 40, "stop": 14}):
        stop = options.pop("stop", None)
        training = trainer(BreaksAfter(12), **options)
        with pytest.raises(TrainingError, match="back at step 10"):
            list(training.run(should_stop=lambda training=training, stop=stop: training.step == stop))
        assert training.step == 10


@pytest.mark.parametrize("broken", [True, False])
def test_after_a_run_that_was_broken_off_the_vectors_are_numbers(trainer: Callable[..., Trainer], broken: bool) -> None:
    """An error from outside came before the next check."""
    training = trainer(BreaksAfter(12 if broken else 99), max_steps=40)
    for event in training.run():
        if event.step == 14:
            break
    assert vectors(training).isfinite().all() != broken
    before = vectors(training)
    training.make_finite()
    assert vectors(training).isfinite().all()
    assert training.step == (10 if broken else 14)
    assert broken or torch.equal(vectors(training), before)


class TakesNoWords(TinyModel):
    """The word stands in no prompt."""

    def encode_prompts(self, prompts: tuple[str, ...], words: dict) -> Conditioning:
        plain = super().encode_prompts(["a photo"] * len(prompts), {})
        return Conditioning(plain.hidden + 0 * words["x-word"]["clip_l"].sum())


def test_a_run_that_no_gradient_reaches_says_so(trainer: Callable[..., Trainer]) -> None:
    training = trainer(TakesNoWords(), max_steps=1000)
    with pytest.raises(TrainingError, match=r"After 10 steps no gradient reaches the vectors.*word is in the prompts"):
        list(training.run())


def test_a_run_whose_rate_is_next_to_nothing_says_so(trainer: Callable[..., Trainer]) -> None:
    with pytest.raises(TrainingError, match="After 10 steps the vectors have not moved: raise the learning rate"):
        list(trainer(max_steps=1000, learning_rate="1e-30").run())
    with pytest.raises(TrainingError, match="After 3 steps the vectors have not moved"):
        list(trainer(max_steps=3, learning_rate="1e-30").run())


def test_stopping_before_the_first_step_changes_nothing(trainer: Callable[..., Trainer]) -> None:
    training = trainer()
    start = vectors(training)
    assert list(training.run(should_stop=lambda: True)) == [Finished(0, "interrupted")]
    assert torch.equal(vectors(training), start)


def test_an_embedding_of_another_model_is_refused(trainer: Callable[..., Trainer], embedded_model: DiffusersModel) -> None:
    class Wide(TinyModel):
        widths = {"clip_l": 768}  # noqa: RUF012

    training = trainer()
    with pytest.raises(ConfigError, match=r"is for unknown \(clip_l 8\) \(clip_l 8\), but tiny is tiny \(clip_l 768\)"):
        Trainer(Wide(), training.dataset, training.embedding, training.config)


def test_a_limit_that_is_not_used_need_not_be_right(trainer: Callable[..., Trainer]) -> None:
    assert trained(trainer(clip_grad_limit="")).isfinite().all()
