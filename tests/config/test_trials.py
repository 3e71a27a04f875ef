"""Several trials in one pass through the network: each is as if it were alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from fakes import TinyModel
from torch import Tensor

from ti_trainer.config.training import TrainConfig, problems
from ti_trainer.config.trials import trials_of
from ti_trainer.data.dataset import Dataset
from ti_trainer.embedding import Embedding
from ti_trainer.errors import ConfigError, TrainingError
from ti_trainer.model import Conditioning, Vectors
from ti_trainer.runs.run_folder import Run
from ti_trainer.training import trainer as trainer_module
from ti_trainer.training.distributed import Sum
from ti_trainer.training.selection import evaluate_trials, trial_results
from ti_trainer.training.state import TrainState
from ti_trainer.training.trainer import StepDone, Trainer, TrialStopped

if TYPE_CHECKING:
    from ti_trainer.hosts.diffusers.model import DiffusersModel

MIXED = ((16, 16), (24, 16), (16, 16), (16, 24), (24, 16))
DATA: dict[str, Any] = {"latent_sampling": "random", "prompter": {"shuffle_tags": True, "tag_dropout": 0.3}}
PAIR: dict[str, Any] = {**DATA, "prompter": {**DATA["prompter"], "negative": "x-word-neg"}}
Losses = list[list[float]]


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> Losses:
    """Those of each update, by try."""
    found: Losses = []

    class Noted(Sum):
        def total(self, should_stop: Callable[[], bool]) -> Tensor:
            found.append((each := super().total(should_stop)).tolist())
            return each

    monkeypatch.setattr(trainer_module, "Sum", Noted)
    return found


@pytest.fixture
def make(dataset: Callable[..., Dataset]) -> Callable[..., Trainer]:
    """A trainer of x-word, with two vectors, and with its negative, which has three, where the options say so."""

    def build(model: Any = None, state: TrainState | None = None, sizes: tuple = ((16, 16),) * 5, **options: Any) -> Trainer:
        model, generator = model or TinyModel(), torch.Generator().manual_seed(1)
        config = TrainConfig(**{"max_steps": 6, **options})
        positive, negative = (
            Embedding(
                name, {key: torch.randn(count, width, generator=generator) / 50 for key, width in model.widths.items()}
            )
            for name, count in (("x-word", 2), ("x-word-neg", 3))
        )
        data = dataset(*sizes, model=model, **(PAIR if config.negative else DATA))
        positive = replace(positive, info={"init_text": "a word"})
        return Trainer(model, data, positive, config, state, negative if config.negative else None)

    return build


def run_of(trainer: Trainer) -> Trainer:
    list(trainer.run())
    return trainer


def first_of(trainer: Trainer) -> list[Tensor]:
    """All that the first trial has learned: vectors, averages, moments."""
    one = trainer.trials[0]
    state = one.optimizer_state()["state"]
    moments = [torch.as_tensor(each[key]) for each in state.values() for key in sorted(each)]
    return [*(each.detach() for each in one.named().values()), *one.averages().values(), *moments]


OPTIONS: list[dict[str, Any]] = [
    {},
    {"batch_size": 2, "gradient_accumulation_steps": 3, "sizes": MIXED, "learning_rate": "0.01:3, 0.002"},
    {"clip_grad": "norm", "clip_grad_limit": "0.002", "ema_rate": 0.8, "ema_every": 2},
    {"negative": True, "train_cfg_scale": "1.5-3:cos", "negative_lr": 0.5, "batch_size": 2, "ema_rate": 0.8},
]
OTHERS: dict[str, Any] = {
    "trials": 3,
    "trial_learning_rates": "; 0.1; 0.002:2, 0.5",
    "trial_init_texts": "; blue thing; cat",
    "trial_vectors": ", 4, 1",
}


@pytest.mark.parametrize("options", OPTIONS)
def test_the_first_of_several_is_as_if_it_were_alone(
    make: Callable[..., Trainer], losses: Losses, options: dict[str, Any]
) -> None:
    alone = run_of(make(**options))
    expected = [each[0] for each in losses]
    losses.clear()
    together = run_of(make(**options, **OTHERS))
    found = [each[0] for each in losses]
    assert len(losses[0]) == 3
    assert found == pytest.approx(expected, abs=1e-5)
    for ours, theirs in zip(first_of(together), first_of(alone), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert alone.last_step == together.last_step == together.step


def test_so_it_is_on_stable_diffusion(embedded_model: DiffusersModel, make: Callable[..., Trainer], losses: Losses) -> None:
    options = {"max_steps": 4, "batch_size": 2, "sizes": ((32, 32),) * 3, "clip_grad": "norm", "clip_grad_limit": "1e-4"}
    alone = run_of(make(embedded_model, **options))
    expected = [each[0] for each in losses]
    losses.clear()
    together = run_of(make(embedded_model, **options, **OTHERS))
    assert [each[0] for each in losses] == pytest.approx(expected, abs=1e-5)
    torch.testing.assert_close(first_of(together)[0], first_of(alone)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("split", [(1, 6), (2, 3)])
def test_accumulation_equals_one_large_batch_of_each_try(
    make: Callable[..., Trainer], losses: Losses, split: tuple[int, int]
) -> None:
    options = {**OTHERS, "clip_grad": "value", "clip_grad_limit": "0.002", "max_steps": 4}
    whole = run_of(make(**options, batch_size=6)).state().vectors
    expected = torch.tensor(losses)
    losses.clear()
    parts = run_of(make(**options, batch_size=split[0], gradient_accumulation_steps=split[1])).state().vectors
    torch.testing.assert_close(torch.tensor(losses), expected, atol=1e-5, rtol=1e-5)
    assert list(parts) == ["clip_l", "trial2.clip_l", "trial3.clip_l"]
    for key, vectors in whole.items():
        torch.testing.assert_close(parts[key], vectors, atol=1e-5, rtol=1e-4)


def test_all_see_the_same_images_and_each_its_own_noise_and_prompts(dataset: Callable[..., Dataset]) -> None:
    data = dataset(*MIXED, **DATA)
    one, three = (data.batches(2, streams=streams) for streams in ((0,), (0, 1, 2)))
    unlike = 0
    for _ in range(8):
        alone, batch = next(one), next(three)
        assert len(batch.latents) == len(batch.prompts) == 6
        assert torch.equal(batch.latents[:2], alone.latents)
        assert torch.equal(batch.noise[:2], alone.noise)
        assert (batch.timesteps[:2].tolist(), batch.prompts[:2]) == (alone.timesteps.tolist(), alone.prompts)
        assert batch.images.sizes.tolist() == alone.images.sizes.tolist() * 3
        assert len({each.numpy().tobytes() for each in batch.noise}) == len(set(batch.latents.sum((1, 2, 3)).tolist())) == 6
        unlike += batch.prompts[:2] != batch.prompts[2:4]
    assert unlike > 4


def test_trials_from_the_same_beginning_go_their_own_ways(make: Callable[..., Trainer]) -> None:
    trained = run_of(make(trials=3))
    ends = [each.parameters[0].detach() for each in trained.trials]
    assert not any(torch.equal(ends[one], ends[other]) for one, other in ((0, 1), (0, 2), (1, 2)))
    begun = make(trials=3)
    assert all(torch.equal(each.parameters[0], begun.trials[0].parameters[0]) for each in begun.trials)


def test_what_the_lists_say_makes_them_differ(make: Callable[..., Trainer]) -> None:
    begun = make(**OTHERS, learning_rate="0.005")
    first, second, third = (each.now(0)[0] for each in begun.trials)
    model = begun.model
    assert [each.num_vectors for each in (first, second, third)] == [2, 4, 1]
    blue, thing = model.token_embeddings("blue thing")["clip_l"]
    assert torch.equal(second.vectors["clip_l"], torch.stack([blue, blue, thing, thing]))
    assert torch.equal(third.vectors["clip_l"], model.token_embeddings("cat")["clip_l"])
    assert [each.info["init_text"] for each in (first, second, third)] == ["a word", "blue thing", "cat"]
    (grown,) = (each.now(0)[0] for each in make(trial_vectors="4").trials)
    assert torch.equal(grown.vectors["clip_l"], model.token_embeddings("a word")["clip_l"][[0, 0, 1, 1]])
    rates = [tuple(each.optimizer.param_groups[0]["lr"] for each in begun.trials) for _ in begun.run()]
    assert rates[:4] == [(0.005, 0.1, 0.002), (0.005, 0.1, 0.002), (0.005, 0.1, 0.5), (0.005, 0.1, 0.5)]


def test_lists_begin_anew_after_their_last_entry() -> None:
    found = trials_of(
        TrainConfig(trials=4, trial_learning_rates="0.1, 0.2", trial_init_texts="a cat, a dog;", trial_vectors="1,,3")
    )
    assert [str(each.learning_rate) for each in found] == ["0.1", "0.2", "0.1", "0.2"]
    assert [each.init_text for each in found] == ["a cat, a dog", None, "a cat, a dog", None]
    assert [each.num_vectors for each in found] == [1, None, 3, 1]
    (one, two) = trials_of(TrainConfig(trials=2, trial_learning_rates="0.1:10, 0.2"))
    assert str(one.learning_rate) == str(two.learning_rate) == "0.1:10, 0.2"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"trials": 2, "trial_learning_rates": "0.1; fast"}, "trial_learning_rates: .*cannot be read at 'fast'"),
        ({"trials": 2, "trial_learning_rates": "1, 2, 3"}, r"found 3 entries for 2 trials.*raise Trials at once to 3"),
        ({"trial_init_texts": "cat; dog"}, "trial_init_texts: found 2 entries for 1 trial,"),
        ({"trials": 2, "trial_vectors": "1, many"}, "trial_vectors: found 'many', expected numbers of vectors from 1 to 75"),
        ({"trials": 2, "trial_vectors": "0"}, "found '0'"),
        ({"trials": 2, "trial_vectors": "76"}, "found '76'"),
    ],
)
def test_nonsense_is_refused_beside_its_option(values: dict[str, Any], said: str) -> None:
    name = list(values)[-1]
    with pytest.raises(ConfigError, match=said) as caught:
        TrainConfig(**values)
    assert caught.value.option == name
    assert problems({**TrainConfig().to_dict(), **values}) == {name: str(caught.value)}


def test_a_run_lasts_as_long_as_the_longest_of_its_schedules(make: Callable[..., Trainer]) -> None:
    assert make(max_steps=50, trials=3, trial_learning_rates="0.1:5; 0.2:20; 0.1:7").last_step == 20
    assert make(max_steps=9, trials=2, trial_learning_rates="0.1:5; 0.2").last_step == 9


class Reading(TinyModel):
    """Keeps the prompts that it is asked to encode, and how many samples it predicts at once."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[list[str], list[str]]] = []
        self.samples: list[int] = []

    def encode_prompts(self, prompts: Sequence[str], words: Mapping[str, Vectors]) -> Conditioning:
        self.calls.append((list(prompts), list(words)))
        return super().encode_prompts(prompts, words)

    def predict(self, noisy_latents: torch.Tensor, *given: Any) -> torch.Tensor:
        self.samples.append(len(noisy_latents))
        return super().predict(noisy_latents, *given)


def test_all_share_a_pass_through_the_network_each_with_its_own_vectors(
    make: Callable[..., Trainer],
) -> None:
    training = make(Reading(), max_steps=1, trials=3, batch_size=2)
    (step,) = (each for each in training.run() if isinstance(each, StepDone))
    assert training.model.samples == [6]
    assert [words for _, words in training.model.calls] == [["x-word"]] * 3
    assert training.model.calls[0][0] == list(dict.fromkeys(step.prompts))


class Padding(Reading):
    """Long prompts are encoded in two chunks, as are those beside them; the network sees all that it is told."""

    def encode_prompts(self, prompts: Sequence[str], words: Mapping[str, Vectors]) -> Conditioning:
        hidden = super().encode_prompts(prompts, words).hidden
        chunks = 2 if len(words["x-word"]["clip_l"]) > 20 else 1
        return Conditioning(torch.cat([hidden, *[torch.zeros_like(hidden)] * (chunks - 1)], 1))

    def predict(self, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning, *given: Any) -> torch.Tensor:
        return super().predict(noisy_latents, timesteps, Conditioning(cond.hidden.mean(1, keepdim=True)), *given)


@pytest.mark.parametrize("negative", [False, True])
def test_a_try_with_long_prompts_does_not_pad_those_of_the_others(make: Callable[..., Trainer], negative: bool) -> None:
    options = {"max_steps": 4, "batch_size": 2, "negative": negative}
    alone, training = run_of(make(Padding(), **options)), run_of(make(Padding(), trials=3, trial_vectors=", 40", **options))
    for ours, theirs in zip(first_of(training), first_of(alone), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    times = 2 if negative else 1
    assert training.model.samples == [4 * times, 2 * times] * 4, "those of one length together"


@pytest.mark.parametrize(("trials", "counts"), [(3, "1, 4, 8"), (1, "4"), (2, ", 3")])
def test_a_run_that_was_killed_goes_on_though_the_file_is_what_it_was(
    make: Callable[..., Trainer], trials: int, counts: str
) -> None:
    options = {"trials": trials, "trial_vectors": counts}
    whole = run_of(make(max_steps=6, **options))
    begun = make(max_steps=6, **options)
    list(begun.run(should_stop=lambda: begun.step == 3))
    resumed = run_of(make(max_steps=6, state=begun.state(), **options))
    for key, vectors in whole.state().vectors.items():
        assert torch.equal(resumed.state().vectors[key], vectors)


@pytest.mark.parametrize("stop_at", [1, 4])
@pytest.mark.parametrize("options", [OPTIONS[1], OPTIONS[2], OPTIONS[3]])
def test_resuming_is_exact(make: Callable[..., Trainer], tmp_path: Path, options: dict[str, Any], stop_at: int) -> None:
    whole = make(**options, **OTHERS)
    events = [each for each in whole.run() if isinstance(each, StepDone)]
    first = make(**options, **OTHERS)
    list(first.run(should_stop=lambda: first.step == stop_at))
    evaluate_trials(first)
    run = Run.create(tmp_path, "x-word", {"name": "x-word"})
    run.save_state(first.state(), "")
    second = make(state=run.load_state()[0], **options, **OTHERS)
    assert second.best.trial == first.best.trial
    assert trial_results(second) == trial_results(first)
    rest = [each for each in second.run() if isinstance(each, StepDone)]
    assert [each.loss for each in rest] == [each.loss for each in events[stop_at:]]
    assert [each.prompts for each in rest] == [each.prompts for each in events[stop_at:]]
    ours, theirs = second.state(), whole.state()
    assert list(ours.vectors) == list(theirs.vectors)
    assert len(ours.vectors) == sum(len(each["state"]) for each in ours.optimizers) == (6 if options.get("negative") else 3)
    for group in ("vectors", "average"):
        assert all(torch.equal(each, getattr(theirs, group)[key]) for key, each in getattr(ours, group).items())
    for mine, other in zip(ours.optimizers, theirs.optimizers, strict=True):
        assert mine["param_groups"] == other["param_groups"]
        for index, moments in mine["state"].items():
            assert all(torch.equal(each, other["state"][index][key]) for key, each in moments.items())


def test_a_state_of_another_number_of_trials_is_refused(make: Callable[..., Trainer]) -> None:
    state = run_of(make(trials=2, max_steps=3)).state()
    for trials in (1, 3):
        with pytest.raises(TrainingError, match=f"has 2 trials, and this run has {trials}: continue with 2"):
            make(state=state, trials=trials)


def test_one_that_diverges_is_put_aside_and_the_others_go_on(make: Callable[..., Trainer], losses: Losses) -> None:
    options = {"max_steps": 35, "batch_size": 2}
    alone = run_of(make(**options))
    losses.clear()
    training = make(**options, trials=3, trial_learning_rates="; 1e39; 0.01")
    begun = training.trials[1].parameters[0].detach().clone()
    events = list(training.run())
    (said,) = (each for each in events if isinstance(each, TrialStopped))
    assert "Trial 2 (learning rate 1e39) was stopped" in said.message
    assert [len(each) for each in losses] == [3] * 10 + [2] * 25
    assert all(torch.isfinite(each.loss) for each in events if isinstance(each, StepDone))
    assert events[-1].reason == "done"
    for ours, theirs in zip(first_of(training), first_of(alone), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert torch.equal(training.trials[1].parameters[0], begun)
    evaluate_trials(training)
    found = trial_results(training)
    assert [(each.stopped, each.validation_loss is None, each.step) for each in found] == [
        (False, False, 35),
        (True, True, 0),
        (False, False, 35),
    ]
    assert training.best.trial.number != 2
    again = make(state=training.state(), **{**options, "max_steps": 40}, trials=3, trial_learning_rates="; 1e39; 0.01")
    assert [each.trial.number for each in again.active_trials] == [1, 3]


def test_if_all_diverge_the_run_ends_with_the_last_good_vectors(make: Callable[..., Trainer]) -> None:
    training = make(max_steps=30, trials=2, learning_rate="1e39")
    begun = [each.parameters[0].detach().clone() for each in training.trials]
    with pytest.raises(TrainingError, match=r"not a finite number \(step 10\); the vectors are back at step 0"):
        list(training.run())
    assert all(torch.equal(each.parameters[0], vectors) for each, vectors in zip(training.trials, begun, strict=True))


def test_one_that_diverged_between_checks_is_put_aside_at_a_sudden_end(make: Callable[..., Trainer]) -> None:
    training = make(max_steps=30, trials=2, trial_learning_rates="0.01, 1e39")
    for event in training.run():
        if event.step == 4:
            break
    good = training.trials[0].parameters[0].detach().clone()
    training.make_finite()
    assert training.step == 4
    assert torch.equal(training.trials[0].parameters[0], good)
    assert [each.trial.number for each in training.active_trials] == [1]
    assert training.is_finite()


class Half(TinyModel):
    """In which the gradient of what a word says is too large for any scale."""

    needs_loss_scaling = True
    too_much = 3  # vectors

    def encode_prompts(self, prompts: Sequence[str], words: Mapping[str, Vectors]) -> Conditioning:
        hidden = super().encode_prompts(prompts, words).hidden
        if len(words["x-word"]["clip_l"]) == self.too_much:
            hidden.register_hook(lambda gradient: gradient * float("inf"))
        return Conditioning(hidden)


def test_gradients_of_one_that_overflow_in_fp16_do_not_end_the_others(
    make: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        trainer_module, "grad_scaler", lambda device: torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=9999)
    )
    alone = run_of(make(max_steps=25))
    training = make(Half(), max_steps=25, trials=2, trial_vectors=", 3")
    events = list(training.run())
    (said,) = (each for each in events if isinstance(each, TrialStopped))
    assert "Trial 2 " in said.message
    assert [each.trial.number for each in training.active_trials] == [1]
    assert training.step == training.micro_step == 25
    torch.testing.assert_close(first_of(training)[0], first_of(alone)[0], rtol=1e-5, atol=1e-5)
    quiet = Half()
    quiet.too_much = 2  # as all have
    with pytest.raises(TrainingError, match="Gradients overflow in fp16"):
        list(make(quiet, trials=2).run())
