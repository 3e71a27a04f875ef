"""DreamArtist: two embeddings, guidance inside the loss, and plain Textual Inversion where there is no negative."""

from __future__ import annotations

import math
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
from ti_trainer.data.prompts import Prompter
from ti_trainer.embedding import Embedding
from ti_trainer.errors import ConfigError, TrainingError
from ti_trainer.formats import embeddings_dir
from ti_trainer.functional.guidance import GuidanceScale, guided
from ti_trainer.runs.run_folder import Run
from ti_trainer.runs.session import Session
from ti_trainer.training.step import training_loss
from ti_trainer.training.trainer import Trainer

PROMPTER = {"negative": "x-word-neg"}
CONFIG = TrainConfig(
    max_steps=6,
    learning_rate="0.005",
    negative=True,
    preview_every=3,
    save_every=3,
    save_cards=True,
    width=16,
    height=16,
)


def words(seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: {"clip_l": (torch.randn(count, 8, generator=generator) * 0.3).requires_grad_()}
        for name, count in (("x-word", 2), ("x-word-neg", 3))
    }


def both(trainer: Trainer) -> list[torch.Tensor]:
    return [each.vectors["clip_l"] for each in trainer.embeddings]


def negative(step: int = 0) -> Embedding:
    return Embedding("x-word-neg", {"clip_l": words()["x-word-neg"]["clip_l"].detach()}, step)


@pytest.fixture
def train(dataset: Callable[..., Dataset]) -> Callable[..., Trainer]:
    """A trainer of x-word and its negative; options are TrainConfig's."""
    data = dataset(prompter=PROMPTER)

    def make(state: object = None, **options: object) -> Trainer:
        config = TrainConfig(**{"max_steps": 10, "negative": True, **options})
        positive = Embedding("x-word", {"clip_l": words()["x-word"]["clip_l"].detach()})
        return Trainer(TinyModel(), data, positive, config, state, negative())

    return make


@pytest.mark.parametrize(
    ("text", "rates"),
    [
        ("3", lambda u: 3 + 0 * u),
        ("1.5-3", lambda u: 1.5 + 1.5 * u),
        ("1.5-3:ln", lambda u: 1.5 + 1.5 * u),
        ("1.5 - 3 : cos", lambda u: 1.5 + 1.5 * np.cos((u - 1) * math.pi / 2)),
        ("5-.5:cos2", lambda u: 5 - 4.5 * (1 - np.cos(u * math.pi / 2))),
    ],
)
def test_the_scale_follows_each_samples_timestep(text: str, rates: Callable[[np.ndarray], np.ndarray]) -> None:
    timesteps = np.array([0, 1, 500, 998, 999])
    found = GuidanceScale.parse(text).at(torch.from_numpy(timesteps), 1000)
    np.testing.assert_allclose(found.numpy(), rates(timesteps / 999), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "text", ["", "x", "1-2:tan", "-3", "31", "1-31", "3:cos", "1-2-3", "__import__('os')", "1e1", "nan"]
)
def test_what_is_no_scale_is_refused_and_nothing_is_evaluated(text: str) -> None:
    with pytest.raises(ConfigError, match=r"\(train_cfg_scale\): found .* expected a number such as 3") as caught:
        TrainConfig(negative=True, train_cfg_scale=text)
    assert caught.value.option == "train_cfg_scale"
    TrainConfig(train_cfg_scale=text)  # what is not used need not be right


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_is_that_of_the_guided_prediction(prediction: str, dataset: Callable[..., Dataset]) -> None:
    model, own = TinyModel(), words()
    model.spec = replace(model.spec, prediction_type=prediction)
    batch = next(dataset(prompter=PROMPTER).batches(3))
    found = training_loss(model, batch, own, GuidanceScale(1.5, 3, "cos")).detach().numpy()

    alpha = model.alphas_cumprod[batch.timesteps].numpy()[:, None, None, None]
    latents, noise = batch.latents.numpy(), batch.noise.numpy()
    noisy = np.sqrt(alpha) * latents + np.sqrt(1 - alpha) * noise
    wanted = noise if prediction == "epsilon" else np.sqrt(alpha) * noise - np.sqrt(1 - alpha) * latents
    said = [
        model.predict(torch.from_numpy(noisy), batch.timesteps, model.encode_prompts(each, own), batch.images)
        .detach()
        .numpy()
        for each in (batch.negative_prompts, batch.prompts)
    ]
    u = batch.timesteps.numpy() / 99
    scale = (1.5 + 1.5 * np.cos((u - 1) * np.pi / 2))[:, None, None, None]
    error = (said[0] + scale * (said[1] - said[0]) - wanted) ** 2
    np.testing.assert_allclose(found, error.mean((1, 2, 3)), rtol=1e-4)
    assert batch.negative_prompts == tuple(each.replace("x-word", "x-word-neg") for each in batch.prompts)


def test_at_scale_1_it_is_the_positive_prediction() -> None:
    one, other = torch.randn(2, 3, 4, 2, 2).unbind()
    torch.testing.assert_close(guided(one, other, torch.ones(3)), other)
    assert torch.equal(guided(one, other, torch.zeros(3)), one)


def test_without_a_negative_it_is_plain_textual_inversion_bit_for_bit(
    trainer: Callable[..., Trainer], dataset: Callable[..., Dataset]
) -> None:
    plain = trainer(max_steps=5)
    with_options = trainer(data=dataset(prompter=PROMPTER), max_steps=5, train_cfg_scale="7", negative_lr=3.0)
    losses = [[event.loss for event in each.run() if hasattr(event, "loss")] for each in (plain, with_options)]
    assert losses[0] == losses[1]
    assert torch.equal(plain.embedding.vectors["clip_l"], with_options.embedding.vectors["clip_l"])


def test_both_learn_and_the_negatives_rate_is_its_own_throughout_a_schedule(train: Callable[..., Trainer]) -> None:
    training = train(learning_rate="0.01:3, 0.002:6", negative_lr=0.5, max_steps=6)
    before = both(training)
    rates = [tuple(group["lr"] for group in training.trials[0].optimizer.param_groups) for _ in training.run()]
    assert rates[:6] == [(0.01, 0.005)] * 3 + [(0.002, 0.001)] * 3
    for one, other in zip(before, both(training), strict=True):
        assert (one != other).any(1).all()
    still = train(negative_lr=0.0)
    start = both(still)
    list(still.run())
    assert torch.equal(both(still)[1], start[1])
    assert not torch.equal(both(still)[0], start[0])


def test_accumulated_batches_are_one_batch(train: Callable[..., Trainer]) -> None:
    whole, parts = train(batch_size=4, max_steps=3), train(batch_size=1, gradient_accumulation_steps=4, max_steps=3)
    for each in (whole, parts):
        list(each.run())
    for one, other in zip(both(whole), both(parts), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_clipping_bounds_the_gradient_of_both_together(
    train: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    norms = []

    def noted(optimizer: torch.optim.Optimizer, *given: object, **named: object) -> None:
        grads = [each.grad for group in optimizer.param_groups for each in group["params"]]
        norms.append(torch.stack([grad.norm() for grad in grads]).norm().item())
        step(optimizer, *given, **named)

    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    list(train(clip_grad="norm", clip_grad_limit="0.001", max_steps=3).run())
    assert norms == pytest.approx([0.001] * 3, rel=1e-3)


def test_a_state_of_one_is_no_state_of_two(train: Callable[..., Trainer], trainer: Callable[..., Trainer]) -> None:
    with pytest.raises(TrainingError, match="DreamArtist was turned on or off"):
        train(trainer().state())


@pytest.fixture
def host(tmp_path: Path) -> TinyHost:
    host = TinyHost(tmp_path)
    embeddings_dir.create_pair(host.embeddings_dir, host.model, ("x-word", "red cat", 2), ("red cat", 2))
    return host


def test_a_negative_begins_near_its_text_but_not_as_the_word(host: TinyHost) -> None:
    word, other = (formats.read(host.embeddings_dir / f"{name}.safetensors") for name in ("x-word", "x-word-neg"))
    difference = (word.vectors["clip_l"] - other.vectors["clip_l"]).abs()
    assert 0 < difference.max() < 0.01


@pytest.mark.parametrize("taken", ["my-cat", "my-cat-neg"])
def test_both_are_made_or_none(taken: str, host: TinyHost) -> None:
    embeddings_dir.create(host.embeddings_dir, host.model, taken, "cat", 1)
    before = sorted(host.embeddings_dir.iterdir())
    with pytest.raises(ConfigError, match=f"There is an embedding '{taken}' already"):
        embeddings_dir.create_pair(host.embeddings_dir, host.model, ("my-cat", "cat", 1), ("*", 2))
    with pytest.raises(ConfigError, match="Number of vectors: found 76"):
        embeddings_dir.create_pair(host.embeddings_dir, host.model, ("other", "cat", 1), ("*", 76))
    assert sorted(host.embeddings_dir.iterdir()) == before


def test_a_session_writes_both_and_goes_on_exactly(host: TinyHost, images: Callable[..., Path]) -> None:
    folder = images((16, 16), (16, 16))
    drawings: list[tuple[str, float, list[str]]] = []
    generate = host.generate
    host.generate = lambda model, drawing, known: (
        drawings.append((drawing.negative_prompt, drawing.cfg_scale, sorted(known))) or generate(model, drawing, known)
    )
    result = Session(host, "x-word", folder, replace(CONFIG, preview_negative_prompt="blurry")).train()
    learned = [formats.read(host.embeddings_dir / f"{name}.safetensors") for name in ("x-word", "x-word-neg")]
    assert [each.step for each in learned] == [6, 6]
    assert drawings == [("a photo of x-word-neg, blurry", 3.0, ["x-word", "x-word-neg"])] * 3
    assert [path.name for _, path in result.run.copies()] == ["x-word-3.safetensors", "x-word-6.safetensors"]
    assert (result.run.path / "embeddings" / "x-word-neg-3.safetensors").is_file()
    card = formats.read(result.run.path / "image_embeddings" / "x-word-neg-6.png")
    assert torch.equal(card.vectors["clip_l"], learned[1].vectors["clip_l"])

    embeddings_dir.create_pair(host.embeddings_dir, host.model, ("x-word", "red cat", 2), ("red cat", 2), overwrite=True)
    Session(host, "x-word", folder, replace(CONFIG, max_steps=3)).train()
    Session(host, "x-word", folder, CONFIG, resume=Run.latest(host.log_dir, "x-word")).train()
    for each in learned:
        again = formats.read(host.embeddings_dir / f"{each.name}.safetensors")
        assert torch.equal(again.vectors["clip_l"], each.vectors["clip_l"])


def test_a_missing_negative_is_said_before_anything_starts(host: TinyHost, images: Callable[..., Path]) -> None:
    (host.embeddings_dir / "x-word-neg.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"no embedding 'x-word-neg'.*Create 'x-word-neg' with about 6 vectors"):
        Session(host, "x-word", images((16, 16)), CONFIG).check()


def test_a_word_and_a_negative_that_do_not_belong_together_are_named(host: TinyHost, images: Callable[..., Path]) -> None:
    folder, told = images(*[(16, 16)] * 3), []
    Session(host, "x-word", folder, replace(CONFIG, negative=False), warn=told.append).train()
    assert told == ["x-word-neg exists, but 'Train with DreamArtist' is off: only x-word is trained."]
    told.clear()
    Session(host, "x-word", folder, replace(CONFIG, max_steps=9), warn=told.append).train()
    assert told == ["x-word is at step 6 and x-word-neg at step 0: they were not trained together."]
    told.clear()
    Session(host, "x-word", folder, replace(CONFIG, max_steps=12), warn=told.append).train()
    assert told == []


def test_the_negative_takes_the_words_place_in_captions_too() -> None:
    prompter = Prompter("x-word", ["a photo of [name], [filewords]"], negative="x-word-neg")
    caption = "X-word on my-x-word, (x-word:1.2) and x-words"
    said, unsaid = prompter.pair(caption, np.random.default_rng(0))
    assert said == f"a photo of x-word, {caption}"
    assert unsaid == "a photo of x-word-neg, x-word-neg on my-x-word, (x-word-neg:1.2) and x-words"
    assert prompter.alone("x-word, a cat", negative=True) == "x-word-neg, a cat"
    assert prompter.alone("x-word, a cat") == "x-word, a cat"


def test_the_negative_prompt_may_go_without_captions(dataset: Callable[..., Dataset]) -> None:
    data = dataset(prompter={**PROMPTER, "positive_filewords_only": True})
    batch = next(data.batches(5))
    assert set(batch.negative_prompts) <= {"a photo of x-word-neg", "x-word-neg"}
    assert all("red" in each or "blue" in each or "green" in each for each in batch.prompts)


def test_an_older_torch_without_a_fused_optimizer_for_this_device_has_the_plain_one(
    train: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch 2.1 does on a CPU: it refuses when it has taken the groups of parameters, which then say `fused`."""
    made = torch.optim.AdamW.__init__

    def refused(self: torch.optim.AdamW, groups: list, *given: object, **named: object) -> None:
        made(self, groups, *given, **named)
        if named.get("fused"):
            message = "`fused=True` requires all the params to be CUDA"
            raise RuntimeError(message)

    monkeypatch.setattr(torch.optim.AdamW, "__init__", refused)
    training = train(max_steps=2)
    assert not any(group["fused"] for group in training.trials[0].optimizer.param_groups)
    list(training.run())
    assert training.step == 2
