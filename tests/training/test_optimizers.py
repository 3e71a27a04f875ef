"""Every optimizer can be chosen by an option, and all of its state survives an interrupted run."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import TinyHost

from ti_trainer.config.training import TrainConfig
from ti_trainer.data.dataset import Dataset
from ti_trainer.embedding import Embedding
from ti_trainer.errors import ConfigError
from ti_trainer.formats import embeddings_dir
from ti_trainer.functional.optimizers import OPTIMIZERS, check_available
from ti_trainer.runs.run_folder import Run
from ti_trainer.runs.session import Session
from ti_trainer.training.state import TrainState
from ti_trainer.training.trainable_embedding import TrainableEmbedding
from ti_trainer.training.trainer import StepDone, Trainer

PACKAGES = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}
RATES = {"prodigy": "1"}


@pytest.fixture(params=OPTIMIZERS)
def optimizer(request: pytest.FixtureRequest) -> str:
    package = PACKAGES.get(request.param, "torch")
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}")
    return request.param


@pytest.fixture
def make(trainer: Callable[..., Trainer], dataset: Callable[..., Dataset]) -> Callable[..., Trainer]:
    """A trainer on data that does not depend on the process."""

    def build(optimizer: str, state: TrainState | None = None, **options: Any) -> Trainer:
        rate = RATES.get(optimizer, "0.005")
        data = dataset(latent_sampling="random")
        return trainer(data=data, state=state, **{"optimizer": optimizer, "learning_rate": rate, **options})

    return build


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, torch.Tensor):
        return isinstance(theirs, torch.Tensor) and ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return list(ours) == list(theirs) and all(same(each, theirs[key]) for key, each in ours.items())
    if isinstance(ours, list | tuple):
        return type(ours) is type(theirs) and all(same(*pair) for pair in zip(ours, theirs, strict=True))
    return type(ours) is type(theirs) and ours == theirs


@pytest.mark.parametrize("options", [{}, {"trials": 2, "gradient_accumulation_steps": 2, "clip_grad": "norm"}])
@pytest.mark.parametrize("stop_at", [1, 7])
def test_a_resumed_run_is_exact(
    optimizer: str, make: Callable[..., Trainer], tmp_path: Path, options: dict[str, Any], stop_at: int
) -> None:
    options = {"max_steps": 12, **options}
    whole = make(optimizer, **options)
    losses = [each.loss.item() for each in whole.run() if isinstance(each, StepDone)]
    first = make(optimizer, **options)
    list(first.run(should_stop=lambda: first.step == stop_at))
    run = Run.create(tmp_path, "x-word", {"name": "x-word"})
    run.save_state(first.state(), "fingerprint")
    read, _ = run.load_state()
    assert same(read.optimizers, first.state().optimizers), "as it was saved"
    second = make(optimizer, state=read, **options)
    assert same(second.state().optimizers, read.optimizers), "as it was restored"
    assert [each.loss.item() for each in second.run() if isinstance(each, StepDone)] == losses[stop_at:]
    assert same(second.state().vectors, whole.state().vectors)
    assert same(second.state().optimizers, whole.state().optimizers)


def test_the_state_of_large_vectors_is_exact_too(optimizer: str) -> None:
    """bitsandbytes quantizes tensors of 4,096 numbers and more."""
    generator = torch.Generator().manual_seed(0)
    start, *gradients = torch.randn(9, 8, 768, generator=generator)
    config = TrainConfig(optimizer=optimizer, learning_rate=RATES.get(optimizer, "0.005"))

    def embedding() -> TrainableEmbedding:
        return TrainableEmbedding(config.trial_list[0], [Embedding("x", {"clip_l": start})], config, torch.device("cpu"))

    def update(one: TrainableEmbedding, steps: range) -> None:
        for step in steps:
            one.parameters[0].grad = gradients[step].clone()
            one.update(step + 1, None)

    whole, first, second = embedding(), embedding(), embedding()
    update(whole, range(8))
    update(first, range(5))
    tensors, counts = TrainState(5, 5, first.named(), (first.optimizer_state(),)).pack()
    second.restore(TrainState.unpack(tensors, json.loads(json.dumps(counts))))
    update(second, range(5, 8))
    assert torch.equal(second.parameters[0], whole.parameters[0])
    assert same(second.optimizer_state(), whole.optimizer_state())
    if optimizer == "adamw8bit":
        assert torch.uint8 in {each.dtype for each in tensors.values()}


def test_prodigy_finds_its_step_size_and_that_is_saved(make: Callable[..., Trainer]) -> None:
    pytest.importorskip("prodigyopt")
    training = make("prodigy", max_steps=300)
    losses = torch.stack([each.loss for each in training.run() if isinstance(each, StepDone)])
    assert losses[-50:].mean() < losses[:50].mean()
    (group,) = training.state().optimizers[0]["param_groups"]
    assert group["d"] > 100 * group["d0"]


def test_a_rate_of_zero_is_no_obstacle(optimizer: str, make: Callable[..., Trainer]) -> None:
    """With a warmup, the first update has one."""
    training = make(optimizer, max_steps=12, lr_warmup_steps=3, lr_scheduler="cosine")
    before = training.state().vectors["clip_l"]
    list(training.run())
    assert not torch.equal(training.state().vectors["clip_l"], before)


def test_a_rate_too_low_for_prodigy_is_noted() -> None:
    assert "use a learning rate of about 1" in TrainConfig(optimizer="prodigy", learning_rate="0.005").schedule_notes()[0]
    assert TrainConfig(optimizer="prodigy", learning_rate="1:500, 0.01").schedule_notes() == []
    assert TrainConfig().schedule_notes() == []


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_package_is_named_with_the_command_that_installs_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, PACKAGES[name], None)
    with pytest.raises(ConfigError, match=rf"pip install {PACKAGES[name]}") as caught:
        check_available(name)
    assert caught.value.option == "optimizer"


def test_prodigy_has_one_rate_for_both_embeddings(dataset: Callable[..., Dataset], trainer: Callable[..., Trainer]) -> None:
    pytest.importorskip("prodigyopt")
    model = trainer().model
    word, negative = (Embedding(name, {"clip_l": torch.randn(2, 8)}) for name in ("x-word", "x-word-neg"))
    data = dataset(prompter={"negative": "x-word-neg"})
    options = {"optimizer": "prodigy", "learning_rate": "1", "negative": True, "max_steps": 2}
    for factor in (1, 0):
        config = TrainConfig(**options, negative_lr=factor)
        assert len(list(Trainer(model, data, word, config, None, negative).run())) == 3
    with pytest.raises(ConfigError) as caught:
        Trainer(model, data, word, TrainConfig(**options, negative_lr=0.5), None, negative)
    assert caught.value.option == "negative_lr"


def test_the_webuis_file_is_of_adamw_only(tmp_path: Path, images: Callable[..., Path]) -> None:
    pytest.importorskip("prodigyopt")
    host = TinyHost(tmp_path)
    file = embeddings_dir.create(host.embeddings_dir, host.model, "x-word", "cat", 2)
    file = file.rename(file.with_suffix(".pt"))
    config = TrainConfig(max_steps=2, template="subject", preview_every=0, save_every=0)
    session = Session(host, "x-word", images((16, 16), (16, 16)), config)
    session.train()
    written = file.with_name("x-word.pt.optim").read_bytes()
    other = replace(config, max_steps=4, optimizer="prodigy", learning_rate="1")
    assert replace(session, config=other).train().reason == "done", "AdamW's state is not read"
    assert file.with_name("x-word.pt.optim").read_bytes() == written, "nor is it replaced by Prodigy's"
    with pytest.raises(ConfigError, match="cannot change") as caught:
        replace(
            session, config=replace(other, max_steps=6, optimizer="adamw"), resume=Run.latest(host.log_dir, "x-word")
        ).train()
    assert caught.value.option == "optimizer"
