"""What comes after the last step, or instead of it, must not cost what was learned: a GPU that fails, a plot that fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from puppet import CONFIG, Puppet

from ti_trainer import formats
from ti_trainer.errors import TrainingError
from ti_trainer.runs import finalize
from ti_trainer.runs.run_folder import Run
from ti_trainer.runs.session import Session
from ti_trainer.training.state import TrainState, check_moved
from ti_trainer.training.trainable_embedding import TrainableEmbedding

CUDA_ERROR = "CUDA error: device-side assert triggered"


@pytest.mark.parametrize(
    "options",
    [{}, {"ema_rate": 0.9}, {"trials": 2, "trial_learning_rates": "0.01, 0.02"}],
    ids=["plain", "average", "trials"],
)
def test_a_gpu_that_fails_costs_the_steps_since_the_last_look_and_no_more(
    session: Session, host: Puppet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """After an error of CUDA nothing can be read from the device any more."""
    config = replace(CONFIG, max_steps=25, state_every=1000, **options)
    whole = replace(session, host=Puppet(tmp_path / "other"), config=config).train()
    looks, finite, predict = [], TrainableEmbedding.is_finite, host.model.predict

    def is_finite(trainable: TrainableEmbedding) -> bool:
        if looks:
            raise RuntimeError(CUDA_ERROR)
        return finite(trainable)

    def failing(*given: object) -> object:
        if host.told and host.told[-1][0] >= 13:
            looks.append(1)
            for vectors in trainables[0].parameters:  # what is on the device is gone
                vectors.data.fill_(torch.nan)
            raise RuntimeError(CUDA_ERROR)
        return predict(*given)

    trainables: list[TrainableEmbedding] = []
    with monkeypatch.context() as patched:
        patched.setattr(TrainableEmbedding, "is_finite", is_finite)
        patched.setattr(host.model, "predict", failing)
        moved = TrainableEmbedding.move_to_cpu

        def move_to_cpu(trainable: TrainableEmbedding, state: TrainState) -> None:
            moved(trainable, state)
            patched.setattr(TrainableEmbedding, "is_finite", finite)

        patched.setattr(TrainableEmbedding, "move_to_cpu", move_to_cpu)
        with pytest.raises(RuntimeError, match=CUDA_ERROR):
            replace(session, config=config).train(lambda trainer, run: trainables.extend(trainer.trials) or [])
    run = Run.latest(host.log_dir, "x-word")
    assert run.step == 10, "the last look"
    assert formats.read(host.embeddings_dir / "x-word.safetensors").step == 10
    rest = replace(session, config=config, resume=run).train()
    ours, theirs = (formats.read(each.embedding_file).vectors["clip_l"] for each in (rest, whole))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("what", ["plot_losses", "before_and_after"])
def test_a_image_of_the_run_that_fails_is_told_and_the_run_is_done(
    session: Session, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    warned: list[str] = []

    def broken(run: Run, step: int = 0) -> None:
        raise ValueError("Axis limits cannot be NaN or Inf")

    monkeypatch.setattr(finalize, what, broken)
    result = replace(session, warn=warned.append).train()
    assert result.reason == "done"
    assert any("could not be drawn (Axis limits cannot be NaN or Inf)" in said for said in warned)


def test_a_damaged_preview_is_no_failure(session: Session, host: Puppet) -> None:
    def damage() -> None:
        for path in host.log_dir.glob("*/*/images/x-word-0.png"):
            path.write_bytes(b"no image")

    host.at = {8: damage}
    warned: list[str] = []
    assert replace(session, warn=warned.append).train().reason == "done"
    assert sum("before-and-after image could not be drawn" in said for said in warned) == 1


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.Adagrad, torch.optim.Adadelta, torch.optim.RMSprop])
@pytest.mark.parametrize("gradient", [0.0, 1.0])
def test_whether_a_gradient_came_is_known_of_any_optimizer(
    optimizer: Callable[..., torch.optim.Optimizer], gradient: float
) -> None:
    vectors = torch.zeros(2, 4, requires_grad=True)
    made = optimizer([vectors], lr=0.0)
    vectors.grad = torch.full_like(vectors, gradient)
    made.step()
    before = TrainState(0, 0, {"clip_l": vectors.detach().clone()}, ({"state": {}},))
    now = TrainState(5, 5, {"clip_l": vectors.detach()}, (made.state_dict(),))
    expected = "raise the learning rate" if gradient else "no gradient reaches the vectors"
    with pytest.raises(TrainingError, match=expected):
        check_moved(before, now)
