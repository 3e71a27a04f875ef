"""What makes the CPU wait for a GPU in each step: nothing. Counted on the CPU, where numbers that are asked for show too."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from fakes import TinyModel
from torch.utils._python_dispatch import TorchDispatchMode

from ti_trainer.config.training import TrainConfig
from ti_trainer.data.dataset import Dataset
from ti_trainer.embedding import Embedding
from ti_trainer.errors import TrainingError
from ti_trainer.training.step import optimizer_step
from ti_trainer.training.trainer import CHECK_EVERY, Trainer

if TYPE_CHECKING:
    from ti_trainer.hosts.diffusers.model import DiffusersModel


class HalfModel(TinyModel):
    needs_loss_scaling = True


def test_fp16s_scale_is_asked_only_until_it_is_found(
    trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    looked, scale_of, asked = [], scaler.get_scale, []
    monkeypatch.setattr("ti_trainer.training.trainer.grad_scaler", lambda device: scaler)
    monkeypatch.setattr("ti_trainer.training.trainer.SCALE_SETTLES", 5)
    run = trainer(HalfModel(), max_steps=30)
    monkeypatch.setattr(scaler, "get_scale", lambda: looked.append(run.micro_step) or scale_of())

    def stepped(*given: object, ask: bool) -> bool:
        asked.append(ask)
        return optimizer_step(*given, ask=ask)

    monkeypatch.setattr("ti_trainer.training.trainable_embedding.optimizer_step", stepped)
    list(run.run())
    assert sorted({*looked}) == [10, 20, 30]
    assert asked == [True] * 5 + [False] * 25
    assert (run.step, run.micro_step) == (30, 30)


def test_gradients_that_always_overflow_end_a_run(trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-20)
    monkeypatch.setattr("ti_trainer.training.trainer.grad_scaler", lambda device: scaler)
    monkeypatch.setattr("ti_trainer.training.trainer.SCALE_SETTLES", 1)
    monkeypatch.setattr(torch.amp.GradScaler, "unscale_", _overflowing(torch.amp.GradScaler.unscale_))
    with pytest.raises(TrainingError, match="overflow in fp16"):
        list(trainer(HalfModel(), max_steps=50).run())


class Looking(TorchDispatchMode):
    """Notes what makes the CPU wait for a GPU: a number of a tensor is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, called: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        if str(called) in ("aten._local_scalar_dense.default", "aten.nonzero.default", "aten.equal.default"):
            self.found.append("".join(traceback.format_stack(limit=8)))
        return called(*given, **(named or {}))


@pytest.mark.parametrize(("half", "negative"), [(False, ""), (True, "x-word-neg")])
def test_an_ordinary_step_asks_the_device_for_nothing(
    embedded_model: DiffusersModel, dataset: Callable[..., Dataset], half: bool, negative: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr("ti_trainer.training.trainer.SCALE_SETTLES", 1)
    monkeypatch.setattr("ti_trainer.training.trainer.grad_scaler", lambda device: torch.amp.GradScaler("cpu"))
    monkeypatch.setattr(embedded_model, "needs_loss_scaling", half)
    data = dataset(*((64, 64),) * 3, model=embedded_model, prompter={"negative": negative}, latent_sampling="random")
    width = embedded_model.widths["clip_l"]
    words = [Embedding(name, {"clip_l": torch.randn(2, width) * 0.02}) for name in ("x-word", negative) if name]
    config = TrainConfig(
        max_steps=30, batch_size=2, clip_grad="norm", clip_grad_limit="1", ema_rate=0.9, negative=bool(negative)
    )
    events = Trainer(embedded_model, data, words[0], config, None, *words[1:]).run()
    next(events)
    with Looking() as ordinary:
        for _ in range(CHECK_EVERY - 2):
            next(events)
    with Looking() as check:
        next(events)
    events.close()
    assert ordinary.found == []
    assert check.found


def _overflowing(unscale: Callable[..., None]) -> Callable[..., None]:
    def unscale_inf(scaler: Any, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            for each in group["params"]:
                each.grad.fill_(float("inf"))
        unscale(scaler, optimizer)

    return unscale_inf
