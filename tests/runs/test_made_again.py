"""What fails in the middle of a run and can be tried again: no step is lost, and none is made twice."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fakes import TinyModel

from ti_trainer.errors import TrainingError
from ti_trainer.training.events import MemoryReduced, StepDone
from ti_trainer.training.trainer import Trainer


class Exhausted(TinyModel):
    """Runs out of memory at some of its predictions, on the way there or back, as long as it has something to give up."""

    def __init__(self, *fails: int, back: bool = False, left: int = 9) -> None:
        super().__init__()
        self.fails, self.back, self.left, self.calls, self.graph = fails, back, left, 0, lambda: None

    def predict(self, *given: Any) -> Any:
        self.calls += 1
        prediction = super().predict(*given)
        self.graph = weakref.ref(prediction)
        if self.calls in self.fails:
            if not self.back:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            prediction.register_hook(self._fail)
        return prediction

    def _fail(self, gradient: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    def reduce_memory(self, error: Exception) -> str:
        assert isinstance(error, torch.cuda.OutOfMemoryError)
        assert self.graph() is None, "what failed holds no memory any more"
        self.left -= 1
        return f"{self.left} left" if self.left >= 0 else ""


@pytest.mark.parametrize("back", [False, True])
def test_what_ran_out_of_memory_is_made_again_bit_for_bit(trainer: Callable[..., Trainer], back: bool) -> None:
    options = {"max_steps": 5, "gradient_accumulation_steps": 3, "batch_size": 2}
    plain = trainer(**options)
    losses = [event.loss for event in plain.run() if isinstance(event, StepDone)]
    model = Exhausted(1, 6, 7, back=back)
    stumbling = trainer(**options, model=model)
    events = list(stumbling.run())
    assert model.calls == 5 * 3 + 3
    assert [each.loss for each in events if isinstance(each, StepDone)] == losses
    assert torch.equal(stumbling.embedding.vectors["clip_l"], plain.embedding.vectors["clip_l"])
    told = [each for each in events if isinstance(each, MemoryReduced)]
    assert told == [MemoryReduced(1, "8 left"), MemoryReduced(2, "7 left"), MemoryReduced(2, "6 left")]


def test_where_nothing_is_left_to_give_up_it_fails_and_keeps_what_was_learned(trainer: Callable[..., Trainer]) -> None:
    stumbling = trainer(max_steps=5, model=Exhausted(3, 4, left=1))
    steps = []
    with pytest.raises(TrainingError, match=r"Memory ran out \(CUDA out of memory\): use a smaller batch size"):
        steps.extend(event.step for event in stumbling.run())
    assert stumbling.step == 2
    assert stumbling.is_finite()
