"""Who makes which part of an update, and what processes that train together tell each other, in real ones of gloo's."""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import processes
import pytest
import torch
from fakes import TinyModel
from puppet import CONFIG

from ti_trainer.data.dataset import Batch, Dataset
from ti_trainer.errors import ConfigError
from ti_trainer.runs.builders import facts_of
from ti_trainer.runs.session import Session
from ti_trainer.training.distributed import ALONE, Processes, joined
from ti_trainer.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, signal, sys
import torch
from ti_trainer.errors import LostProcessError, StoppedError, TITrainerError
from ti_trainer.training.distributed import Sum, joined

def error_of(act):
    try:
        with act() as facts:
            pass
        return None
    except TITrainerError as error:
        return [type(error).__name__, str(error)]

from contextlib import contextmanager
found = {}
with joined() as all:
    first = all.rank == 0

    @contextmanager
    def facts():
        with all.together() as facts:
            facts |= {"model": "same", "dataset": "same" if first else "other"}
            yield

    @contextmanager
    def fails(kind):
        with all.together():
            if not first:
                raise kind("no such folder: \\u00fc" * 3)
            yield

    found["facts"] = error_of(facts)
    found["fails"] = error_of(lambda: fails(TITrainerError))
    found["stopped"] = error_of(lambda: fails(StoppedError))
    found["well"] = error_of(all.together)
    found["any"] = [all.any(), all.any(lambda: not first), all.any(lambda: True)]

    words = [torch.zeros(2, 3, requires_grad=True), torch.zeros(4, requires_grad=True)]
    update = Sum(all, words, 5)
    for index in update.mine:
        gradients = torch.autograd.grad(words[0].sum() * 10**index + words[1].sum() * 0.1 * index, words)
        update.add(index, torch.tensor(float(index)), gradients)
    found["loss"] = update.total(lambda: False).item()
    found["gradients"] = [each.grad.flatten().tolist() for each in words]
    found["shapes"] = [list(each.grad.shape) for each in words]
    overflow = Sum(all, words, 2)
    for index in overflow.mine:
        gradient = words[0].detach() + (1 if first else float("inf"))
        overflow.add(index, torch.tensor(0.0), [gradient, words[1].detach()])
    overflow.total(lambda: False)
    found["overflow"] = [bool(each.grad.isinf().all()) for each in words]
    if not first:
        print(json.dumps(found), flush=True)
        signal.raise_signal(signal.SIGKILL)
    try:
        while True:
            all.any()
    except LostProcessError as error:
        found["lost"] = str(error)
    found["spoiled"] = all.spoiled
print(json.dumps(found))
"""


@pytest.mark.parametrize("micro_steps", [4, 5, 8, 9])
def test_each_part_has_one_that_makes_it_and_the_last_is_the_writers(micro_steps: int) -> None:
    for size in (1, 2, 3, 4):
        shares = [Processes(rank, size).share(micro_steps) for rank in range(size)]
        assert sorted(index for share in shares for index in share) == list(range(micro_steps))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        assert shares[0][-1] == micro_steps - 1


@pytest.mark.parametrize("size", [1, 2, 3])
def test_over_all_processes_an_epoch_is_one_permutation_and_none_draws_what_others_make(
    dataset: Callable[..., Dataset], size: int
) -> None:
    drawn: list[tuple[int, int]] = []

    class Noted(Dataset):
        def batch(self, samples: list[tuple[int, int]], streams: Sequence[int] = (0,)) -> Batch:
            drawn.extend(samples)
            return super().batch(samples, streams)

    data = dataset(*((16, 16),) * 9, seed=5)
    data = Noted(data.items, (), data.prompter, data.seed, data.num_timesteps)
    start, micro_steps, whole = 2, 3, list(islice(data.batches(1, 2), 18))
    drawn.clear()
    for rank in range(size):
        mine = Processes(rank, size).share(micro_steps)
        numbers = [number for number in range(18) if number % micro_steps in mine]
        made = data.batches(1, start, lambda number, mine=mine: number % micro_steps in mine)
        for number, batch in zip(numbers, islice(made, len(numbers)), strict=True):
            assert torch.equal(batch.noise, whole[number].noise)
            assert batch.prompts == whole[number].prompts
    assert sorted(number for number, _ in drawn) == list(range(start, start + 18))
    assert Counter(index for number, index in drawn if 9 <= number < 18) == Counter(range(9))


def test_too_few_parts_are_refused_before_anything_is_opened(session: Session) -> None:
    for size, steps in ((2, 1), (4, 3)):
        each = replace(session, config=replace(CONFIG, gradient_accumulation_steps=steps), processes=Processes(0, size))
        said = f"found {steps} for {size} processes, expected {size} or more: .*Raise it to {size}"
        with pytest.raises(ConfigError, match=said) as caught:
            each.check()
        assert caught.value.option == "gradient_accumulation_steps"
    Processes(0, 2).check(2)
    ALONE.check(1)


def test_whatever_makes_another_run_of_it_is_another_fact(
    trainer: Callable[..., Trainer], dataset: Callable[..., Dataset]
) -> None:
    def others(other: Trainer) -> list[str]:
        return [name for name, fact in facts_of(trainer()).items() if facts_of(other)[name] != fact]

    changed, scaled, moved = trainer(TinyModel()), trainer(TinyModel()), trainer()
    changed.model.checkpoint_hash = "another"
    scaled.model.needs_loss_scaling = True
    next(moved.run())
    assert others(trainer()) == []
    assert others(trainer(seed=4)) == ["set of options"]
    assert others(trainer(data=dataset((16, 16), (16, 16)))) == ["dataset"]
    assert others(moved) == ["state of the embedding"]
    assert others(changed) == ["model"]
    assert others(scaled) == ["kind of device"]


def test_alone_nothing_is_sent_and_nothing_is_begun(
    trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("all_reduce", "all_gather", "init_process_group", "new_group"):
        monkeypatch.setattr(torch.distributed, name, lambda *given, **named: pytest.fail("alone"))
    for environment in ({}, {"WORLD_SIZE": "1", "RANK": "0"}, {"WORLD_SIZE": "4"}):
        with joined(environment) as processes, processes.together():
            assert processes is ALONE
            assert processes.any(lambda: True)
    list(trainer(max_steps=2, gradient_accumulation_steps=2).run())


def test_without_torch_distributed_or_anybody_there_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"WORLD_SIZE": "2", "RANK": "1"}
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with (
        pytest.raises(ConfigError, match=r"The 2 processes cannot connect .*: start them with torchrun"),
        joined(environment),
    ):
        pass
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"without torch\.distributed"), joined(environment):
        pass


def test_two_agree_add_up_in_order_and_notice_a_loss() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    started = [processes.start(("-c", PROGRAM), environment={**shared, "RANK": rank}) for rank in "01"]
    ends = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, -9], ends
    first, second = (json.loads(out.splitlines()[-1]) for out, _ in ends)
    said = "no such folder: \u00fc" * 3
    for found in (first, second):
        assert found["facts"][1].startswith("Process 1 has another dataset than process 0: ")
        assert found["well"] is None
        assert found["any"] == [False, True, True]
        assert found["loss"] == 10.0
        assert found["gradients"] == [[11111.0] * 6, [pytest.approx(1.0)] * 4]
        assert found["overflow"] == [True, False]  # all leave that update out, whoever made it
        assert found["shapes"] == [[2, 3], [4]]
    assert (first["fails"], second["fails"]) == (["ConfigError", f"Process 1: {said}"], ["TITrainerError", said])
    assert first["stopped"] == second["stopped"] == ["StoppedError", said]
    assert first["lost"].startswith("Another process of this training was lost; ")
    assert not first["spoiled"]  # a sum on a CPU fails before anything is made of it
