"""Training on a real GPU with the embedded model. `tests/gpu/run_all.py` runs these tests and measures."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ti_trainer import tiny_model
from ti_trainer.config.training import TrainConfig
from ti_trainer.data.dataset import Dataset
from ti_trainer.data.images import Frame
from ti_trainer.data.loading import load_dataset
from ti_trainer.data.prompts import Prompter
from ti_trainer.embedding import Embedding
from ti_trainer.host import GenerationRequest, ModelOptions
from ti_trainer.hosts.diffusers import loading, sampling
from ti_trainer.hosts.diffusers.model import DiffusersModel
from ti_trainer.offload.plan import PLANS
from ti_trainer.training.events import MemoryReduced, StepDone
from ti_trainer.training.trainer import Trainer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]
NAME = "x-word"


@pytest.fixture
def model() -> DiffusersModel:
    return loading.load("embedded", "cuda", ModelOptions("fp16"))


def dataset_for(model: DiffusersModel) -> Dataset:
    return load_dataset(tiny_model.DEMO, model, Frame((64, 64)), Prompter(NAME, ("a photo of [name]",)))


def trainer_for(model: DiffusersModel, steps: int = 30, state: Any = None, **options: Any) -> Trainer:
    vectors = {key: torch.full((2, width), 0.01) for key, width in model.widths.items()}
    config = TrainConfig(max_steps=steps, **options)
    return Trainer(model, dataset_for(model), Embedding(NAME, vectors), config, state)


def gradient(model: DiffusersModel) -> torch.Tensor:
    trainer = trainer_for(model)
    batch = next(trainer._batches())
    with model.training():
        _, found = trainer._objective.gradients(trainer.trials, batch, 1, None, lambda message: None)
    return torch.cat([each.flatten() for each in found]).cpu()


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_vectors_are_learned_in_each_precision(precision: str) -> None:
    trainer = trainer_for(loading.load("embedded", "cuda", ModelOptions(precision)))
    before = trainer.embedding.vectors
    losses = [float(event.loss) for event in trainer.run() if isinstance(event, StepDone)]
    assert len(losses) == 30
    assert all(each == each for each in losses)
    assert not any(torch.equal(each, before[key]) for key, each in trainer.embedding.vectors.items())


def test_each_memory_mode_gives_the_same_gradient(model: DiffusersModel) -> None:
    model.fit_memory(64, mode="none")
    wanted = gradient(model)
    for mode in PLANS:
        model.fit_memory(64, mode=mode)
        for _ in range(2):  # the order of blocks, in which weights are copied in advance, is learned in the first
            gradient(model)
        limit = 0.1 if mode == "8bit" else 1e-2
        assert (gradient(model) - wanted).norm() < limit * wanted.norm(), mode
    model.use_all_memory()


def test_when_memory_runs_out_the_step_is_repeated_with_less(model: DiffusersModel) -> None:
    """Another tensor takes the GPU's memory away, for the first attempt only."""
    trainer = trainer_for(model, 5)
    model.fit_memory(64, mode="none")
    reduce, balloon = model.reduce_memory, []

    def run_out(*_: Any) -> None:
        if not balloon:
            free, _ = torch.cuda.mem_get_info()
            balloon.append(torch.empty(free - 2**24, dtype=torch.uint8, device="cuda"))
            torch.empty(2**30, dtype=torch.uint8, device="cuda")

    hook = model.unet.mid_block.register_forward_pre_hook(run_out)
    model.reduce_memory = lambda error: balloon.__setitem__(0, None) or reduce(error)  # type: ignore[method-assign]
    events = list(trainer.run())
    hook.remove()
    assert any(isinstance(each, MemoryReduced) for each in events)
    assert trainer.step == 5


def test_a_compiled_network_trains(model: DiffusersModel) -> None:
    trainer = trainer_for(model, 10)
    model.fit_memory(64, mode="none")
    message = model.compile("on", 10, 1, lambda: None)
    events = list(trainer.run())
    assert not any(isinstance(each, MemoryReduced) for each in events), message
    assert trainer.step == 10
    model.use_all_memory()


def test_a_resumed_run_continues(model: DiffusersModel) -> None:
    whole = trainer_for(model, 20)
    list(whole.run())
    first = trainer_for(model, 10)
    list(first.run())
    again = trainer_for(loading.load("embedded", "cuda", ModelOptions("fp16")), 20, first.state())
    list(again.run())
    for key, each in again.embedding.vectors.items():
        torch.testing.assert_close(each, whole.embedding.vectors[key], rtol=0, atol=1e-3)


def test_no_step_waits_for_the_gpu(model: DiffusersModel) -> None:
    trainer = trainer_for(model, 200)
    model.fit_memory(64, mode="none")
    active, batches = trainer.active_trials, trainer._batches()
    trainer._settles_at = 0

    def update(count: int) -> None:
        with model.training():
            for _ in range(count):
                trainer._update(active, batches, lambda: False)

    update(3)
    torch.cuda.set_sync_debug_mode("error")
    try:
        update(3)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_vae_in_half_precision_is_nearly_exact(model: DiffusersModel) -> None:
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert model.vae.dtype == torch.float16
    exact = loading.load("embedded", "cuda", ModelOptions("fp32"))
    (wanted, _), (found, _) = exact.encode_images(pixels), model.encode_images(pixels)
    assert (found - wanted).norm() < 5e-3 * wanted.norm()
    with torch.no_grad():
        assert (model.decode(wanted).float() - exact.decode(wanted)).abs().max() < 4 / 255


def test_a_preview(model: DiffusersModel) -> None:
    trainer = trainer_for(model, 5)
    list(trainer.run())
    vectors = {NAME: {key: each.cuda() for key, each in trainer.embedding.vectors.items()}}
    image = sampling.generate(model, GenerationRequest(f"a photo of {NAME}", steps=5), vectors)
    low, high = image.convert("L").getextrema()
    assert high > low
