"""One update: accumulation equals a larger batch, and clipping bounds the gradient itself, not the scaled one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from fakes import TinyModel

from ti_trainer.data.dataset import Dataset
from ti_trainer.model import Conditioning
from ti_trainer.training.step import encode_distinct, optimizer_step, training_loss
from ti_trainer.training.trainer import StepDone, Trainer

if TYPE_CHECKING:
    from ti_trainer.hosts.diffusers.model import DiffusersModel

SCALE = 65536.0


def outcome(trainer: Trainer) -> tuple[torch.Tensor, torch.Tensor]:
    losses = [event.loss for event in trainer.run() if isinstance(event, StepDone)]
    return torch.cat([each.flatten() for each in trainer.state().vectors.values()]), torch.stack(losses)


# AdamW follows only the direction of a gradient: the limit, and the losses, show its size too
@pytest.mark.parametrize("split", [(1, 6), (2, 3), (3, 2)])
def test_accumulation_equals_one_large_batch(split: tuple[int, int], trainer: Callable[..., Trainer]) -> None:
    options = {"max_steps": 6, "clip_grad": "value", "clip_grad_limit": "0.002"}
    batch_size, accumulation = split
    vectors, losses = outcome(trainer(**options, batch_size=6))
    ours, our_losses = outcome(trainer(**options, batch_size=batch_size, gradient_accumulation_steps=accumulation))
    torch.testing.assert_close(our_losses, losses, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(ours, vectors, atol=1e-6, rtol=1e-5)


def test_accumulation_equals_one_large_batch_on_stable_diffusion(
    embedded_model: DiffusersModel, trainer: Callable[..., Trainer], dataset: Callable[..., Dataset]
) -> None:
    data = dataset(*[(32, 32)] * 4, model=embedded_model)
    vectors, losses = outcome(trainer(embedded_model, data, max_steps=3, batch_size=4))
    ours, our_losses = outcome(trainer(embedded_model, data, max_steps=3, gradient_accumulation_steps=4))
    torch.testing.assert_close(our_losses, losses, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours, vectors, atol=2e-5, rtol=0)  # a step is 5e-3


def updated(scale: float, clip_grad: str, limit: float, gradient: torch.Tensor) -> torch.Tensor:
    """The gradient that an update was made with, after a loss scaled by `scale`."""
    parameter = torch.zeros_like(gradient, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale) if scale != 1 else None
    loss = (parameter * gradient).sum()
    (loss if scaler is None else scaler.scale(loss)).backward()
    optimizer_step(optimizer, [parameter], scaler, clip_grad, limit)
    assert parameter.grad is None
    return -parameter.detach()


GRADIENT = torch.tensor([[3.0, -4.0], [0.05, 0.0]])


@pytest.mark.parametrize("scale", [1.0, SCALE])
def test_value_clipping_bounds_each_number_of_the_unscaled_gradient(scale: float) -> None:
    assert torch.equal(updated(scale, "value", 0.1, GRADIENT), torch.tensor([[0.1, -0.1], [0.05, 0.0]]))


@pytest.mark.parametrize("scale", [1.0, SCALE])
def test_norm_clipping_bounds_the_length_of_the_unscaled_gradient(scale: float) -> None:
    clipped = updated(scale, "norm", 0.1, GRADIENT)
    torch.testing.assert_close(clipped, GRADIENT * 0.1 / GRADIENT.norm(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("scale", [1.0, SCALE])
@pytest.mark.parametrize(("clip_grad", "limit"), [("value", 5.0), ("norm", 6.0), ("disabled", 0.1)])
def test_a_gradient_within_the_limit_is_left_alone(scale: float, clip_grad: str, limit: float) -> None:
    assert torch.equal(updated(scale, clip_grad, limit, GRADIENT), GRADIENT)


@pytest.mark.parametrize("clip_grad", ["disabled", "value", "norm"])
def test_loss_scaling_changes_nothing_but_the_scale(
    clip_grad: str, trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    class HalfModel(TinyModel):
        needs_loss_scaling = True

    monkeypatch.setattr(
        "ti_trainer.training.trainer.grad_scaler", lambda device: torch.amp.GradScaler("cpu", init_scale=SCALE)
    )
    options = {"clip_grad": clip_grad, "clip_grad_limit": "0.002", "gradient_accumulation_steps": 2}
    scaled = trainer(HalfModel(), **options)
    vectors, losses = outcome(trainer(**options))
    ours, our_losses = outcome(scaled)
    assert scaled.state().scaler["scale"] == SCALE
    torch.testing.assert_close(ours, vectors, atol=1e-7, rtol=1e-6)
    assert torch.equal(our_losses, losses)


def test_an_update_that_overflows_is_left_out_and_is_no_step(
    trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    class HalfModel(TinyModel):
        needs_loss_scaling = True

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-100)
    monkeypatch.setattr("ti_trainer.training.trainer.grad_scaler", lambda device: scaler)
    monkeypatch.setattr(TinyModel, "predict", _large(TinyModel.predict))
    run = trainer(HalfModel(), max_steps=4)
    steps = [event.step for event in run.run() if isinstance(event, StepDone)]
    assert steps == [1, 2, 3, 4]
    assert run.micro_step == 5  # the first overflowed


@pytest.mark.parametrize("pooled", [False, True])
def test_a_prompt_is_encoded_once_however_often_it_is_there(pooled: bool) -> None:
    asked: list[list[str]] = []

    class Counting(TinyModel):
        def encode_prompts(self, prompts: Any, words: Any) -> Conditioning:
            asked.append(list(prompts))
            cond = super().encode_prompts(prompts, words)
            return Conditioning(cond.hidden, cond.hidden[:, 0] * 2) if pooled else cond

    model = Counting()
    words = {"x": {"clip_l": torch.randn(1, 8, requires_grad=True)}}
    prompts = ["a x", "x of b", "a x", "a x"]
    found, wanted = encode_distinct(model, prompts, words), model.encode_prompts(prompts, words)
    assert asked == [["a x", "x of b"], prompts]
    gradients = []
    for cond in (found, wanted):
        parts = [each for each in (cond.hidden, cond.pooled) if each is not None]
        assert len(parts) == 1 + pooled
        weights = torch.arange(4.0)[:, None]
        loss = sum((each.flatten(1) * weights).square().sum() for each in parts)
        gradients += [*parts, *torch.autograd.grad(loss, words["x"]["clip_l"])]
    for ours, theirs in zip(gradients[: len(gradients) // 2], gradients[len(gradients) // 2 :], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def _large(predict: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda *arguments: predict(*arguments) * 100


def test_the_limit_follows_its_schedule(trainer: Callable[..., Trainer]) -> None:
    limits: list[float] = []

    def spy(parameters: Any, limit: float) -> None:
        limits.append(limit)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", spy)
        outcome(trainer(max_steps=4, clip_grad="norm", clip_grad_limit="0.5:2, 0.25"))
    assert limits == [0.5, 0.5, 0.25, 0.25]


def test_a_weight_reaches_the_loss(dataset: Callable[..., Dataset]) -> None:
    data, model = dataset(), TinyModel()
    batch = next(data.batches(2))
    words = {"x-word": {"clip_l": torch.ones(1, 8)}}
    none = type(batch)(batch.latents, batch.noise, batch.timesteps, batch.prompts, torch.zeros(2, 1, 2, 2), batch.images)
    assert training_loss(model, batch, words).shape == (2,)
    assert torch.equal(training_loss(model, none, words), torch.zeros(2))
