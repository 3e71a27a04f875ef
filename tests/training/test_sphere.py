"""The optimizer sphere: vectors keep the usual norm of the vocabulary, and turn by the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import TinyHost, TinyModel
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ti_trainer.config.training import TrainConfig
from ti_trainer.data.dataset import Dataset
from ti_trainer.embedding import Embedding
from ti_trainer.formats import embeddings_dir
from ti_trainer.functional.sphere import Sphere, on_sphere
from ti_trainer.runs.callbacks import Callback
from ti_trainer.runs.controls import Controls
from ti_trainer.runs.run_folder import Run
from ti_trainer.runs.session import Session
from ti_trainer.training.state import TrainState
from ti_trainer.training.trainer import Trainer
from ti_trainer.training.vocabulary import Vocabulary


class TwoEncoders(TinyModel):
    """As SDXL: two text encoders, of different widths and with vectors of different lengths."""

    widths = {"clip_l": 8, "clip_g": 6}  # noqa: RUF012 - as in the class above

    def token_embeddings(self, text: str) -> dict[str, Tensor]:
        tokens = super().token_embeddings(text)["clip_l"]
        return {"clip_l": tokens, "clip_g": 0.1 * tokens[:, :6]}

    def encode_prompts(self, prompts: Any, embeddings: Any) -> Any:
        both = {
            name: {"clip_l": each["clip_l"] + torch.cat([each["clip_g"]] * 2, 1)[:, :8]} for name, each in embeddings.items()
        }
        return super().encode_prompts(prompts, both)


def norms(vectors: Tensor) -> list[float]:
    return vectors.norm(dim=1).tolist()


def test_an_update_turns_each_row_by_the_rate_towards_lower_loss() -> None:
    vectors = on_sphere(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), 0.4).requires_grad_()
    before, wanted = vectors.detach().clone(), torch.ones(8)
    optimizer = Sphere([{"params": [vectors]}], 0.02)
    (-(vectors @ wanted).sum()).backward()
    optimizer.step()
    assert norms(vectors.detach()) == pytest.approx([0.4] * 3, rel=1e-6)
    turned = cosine_similarity(vectors.detach().double(), before.double()).acos()
    assert turned.tolist() == pytest.approx([math.atan(0.02)] * 3, rel=1e-3)
    assert (vectors.detach() @ wanted > before @ wanted).all()


def test_a_row_without_gradient_stays() -> None:
    vectors = torch.tensor([[0.3, 0.4], [0.0, 0.5]], requires_grad=True)
    optimizer = Sphere([{"params": [vectors]}], 0.1)
    vectors.grad = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    optimizer.step()
    assert vectors[0].tolist() == pytest.approx([0.3, 0.4])
    assert vectors[1].tolist() != pytest.approx([0.0, 0.5])


def test_only_the_direction_of_the_gradient_counts() -> None:
    first, second = (torch.tensor([[0.3, 0.4, 0.1]], requires_grad=True) for _ in range(2))
    for vectors, scale in ((first, 1.0), (second, 1e4)):
        optimizer = Sphere([{"params": [vectors]}], 0.1)
        vectors.grad = scale * torch.tensor([[1.0, 2.0, 3.0]])
        optimizer.step()
    assert torch.allclose(first, second, rtol=1e-5)


def test_a_row_of_zeros_gets_a_direction() -> None:
    vectors = on_sphere(torch.zeros(2, 8), 0.5)
    assert norms(vectors) == pytest.approx([0.5, 0.5])
    assert not torch.equal(vectors[0], vectors[1])
    assert torch.equal(on_sphere(torch.zeros(2, 8), 0.5), vectors)


@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_accumulation_steps": 3}, {"ema_rate": 0.9, "ema_every": 2}, {"trials": 2, "clip_grad": "norm"}],
)
def test_vectors_keep_the_norm_of_the_vocabulary(trainer: Callable[..., Trainer], options: dict[str, Any]) -> None:
    training = trainer(optimizer="sphere", learning_rate="auto", **options)
    usual = Vocabulary.of(training.model).norms["clip_l"]
    start = training.embedding.vectors["clip_l"]
    assert norms(start) == pytest.approx([usual] * 2, rel=1e-6)
    list(training.run(should_stop=lambda: training.step == 9))  # after 10 steps, EMA has just replaced the vectors
    after = training.embedding.vectors["clip_l"]
    assert norms(after) == pytest.approx([usual] * 2, rel=1e-6)
    assert not torch.allclose(after, start)


def test_each_text_encoder_has_a_norm_of_its_own(trainer: Callable[..., Trainer]) -> None:
    model = TwoEncoders()
    training = trainer(model, optimizer="sphere", learning_rate="auto")
    start = training.embedding.vectors
    list(training.run())
    usual = Vocabulary.of(model).norms
    assert usual["clip_g"] < usual["clip_l"] / 5
    for encoder, vectors in training.embedding.vectors.items():
        assert norms(vectors) == pytest.approx([usual[encoder]] * 2, rel=1e-6)
        assert not torch.allclose(vectors, start[encoder])


def test_micro_batches_equal_a_batch(trainer: Callable[..., Trainer]) -> None:
    whole = trainer(optimizer="sphere", learning_rate="0.05", batch_size=3)
    parts = trainer(optimizer="sphere", learning_rate="0.05", gradient_accumulation_steps=3)
    for each in (whole, parts):
        list(each.run())
    assert torch.allclose(whole.embedding.vectors["clip_l"], parts.embedding.vectors["clip_l"], atol=1e-5)


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_dreamartist_turns_both_embeddings(dataset: Callable[..., Dataset], factor: float) -> None:
    generator = torch.Generator().manual_seed(0)
    positive, negative = (
        Embedding(name, {"clip_l": torch.randn(count, 8, generator=generator)})
        for name, count in (("x-word", 2), ("x-word-neg", 3))
    )
    config = TrainConfig(max_steps=8, optimizer="sphere", learning_rate="auto", negative=True, negative_lr=factor)
    model, data = TinyModel(), dataset(prompter={"negative": "x-word-neg"})

    def make(state: TrainState | None = None) -> Trainer:
        return Trainer(model, data, positive, config, state, negative)

    whole, first = make(), make()
    list(whole.run())
    list(first.run(should_stop=lambda: first.step == 3))
    second = make(TrainState.unpack(*first.state().pack()))
    list(second.run())
    usual = Vocabulary.of(model).norms["clip_l"]
    for ours, theirs, start in zip(second.embeddings, whole.embeddings, make().embeddings, strict=True):
        assert torch.equal(ours.vectors["clip_l"], theirs.vectors["clip_l"])
        assert norms(ours.vectors["clip_l"]) == pytest.approx([usual] * len(start.vectors["clip_l"]), rel=1e-6)
        assert not torch.allclose(ours.vectors["clip_l"], start.vectors["clip_l"])


def test_a_session_resumes_exactly(tmp_path: Path, images: Callable[..., Path]) -> None:
    """Also with an embedding whose vectors had another norm, which the file has until the run ends."""
    host, folder, controls = TinyHost(tmp_path), images((16, 16), (16, 16)), Controls()
    config = TrainConfig(max_steps=9, optimizer="sphere", learning_rate="auto", width=16, height=16, preview_every=0)

    def session(name: str, resume: Run | None = None) -> Session:
        return Session(host, name, folder, config, resume)

    for name in ("x-word", "y-word"):
        embeddings_dir.create(host.embeddings_dir, host.model, name, "thing", 2)

    def stop(trainer: Trainer, run: Run) -> list[Callback]:
        return [lambda event: controls.stop.set() if trainer.step == 4 else None]

    stopped = session("x-word").train(stop, controls)
    assert stopped.embedding.step == 4
    resumed = session("x-word", stopped.run).train().embedding.vectors["clip_l"]
    assert torch.equal(resumed, session("y-word").train().embedding.vectors["clip_l"])
    assert norms(resumed) == pytest.approx([Vocabulary.of(host.model).norms["clip_l"]] * 2, rel=1e-6)


def test_a_rate_that_is_meant_for_adamw_is_pointed_out() -> None:
    assert not any("Sphere" in each for each in TrainConfig(optimizer="sphere", learning_rate="auto").schedule_notes())
    assert any("0.03" in each for each in TrainConfig(optimizer="sphere", learning_rate="0.005").schedule_notes())


def test_long_vectors_that_are_shortened_are_pointed_out(tmp_path: Path, images: Callable[..., Path]) -> None:
    """As those that AdamW trained: only their directions are kept."""
    host, folder, said = TinyHost(tmp_path), images((16, 16), (16, 16)), []
    usual = Vocabulary.of(host.model).norms["clip_l"]
    for name, factor in (("x-word", 7.0), ("y-word", 1.0)):
        start = on_sphere(torch.ones(2, 8), factor * usual)
        host.embeddings_dir.mkdir(exist_ok=True)
        embeddings_dir.save(Embedding(name, {"clip_l": start}, 3), host.embeddings_dir / f"{name}.safetensors")
        config = TrainConfig(max_steps=5, optimizer="sphere", learning_rate="auto", width=16, height=16, preview_every=0)
        Session(host, name, folder, config, say=said.append).train()
    assert (
        [each for each in said if "times as long" in each] == [each for each in said if "x-word were 7 times" in each] != []
    )


def test_an_overflow_that_a_grad_scaler_found_skips_the_update() -> None:
    vectors = torch.tensor([[3.0, 4.0]], requires_grad=True)
    optimizer = Sphere([{"params": [vectors], "lr": 0.1}], 0.1)
    vectors.grad = torch.tensor([[torch.inf, 1.0]])
    optimizer.found_inf = torch.tensor([1.0])  # as torch's GradScaler passes it
    optimizer.step()
    assert torch.equal(vectors, torch.tensor([[3.0, 4.0]]))
    vectors.grad, optimizer.found_inf = torch.tensor([[0.0, 1.0]]), torch.tensor([0.0])
    optimizer.step()
    assert not torch.equal(vectors, torch.tensor([[3.0, 4.0]]))
