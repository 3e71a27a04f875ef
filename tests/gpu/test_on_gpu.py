"""Training on a real GPU with the embedded model. `tests/gpu/run_all.py` runs these tests and measures.

With TI_TRAINER_GPU_TESTS=cpu they run on the CPU as far as they can, as a check of the tests.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from ti_trainer import formats, tiny_model
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

DEVICE = os.environ.get("TI_TRAINER_GPU_TESTS", "cuda")
ON_GPU = DEVICE == "cuda"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(ON_GPU and not torch.cuda.is_available(), reason="there is no GPU")]
needs_gpu = pytest.mark.skipif(not ON_GPU, reason="a CPU cannot do this")
NAME = "x-word"
RESUMED = ("train", NAME, "--images", tiny_model.DEMO, "--device", DEVICE, "--preview-every", 0, "--learning-rate", 0.005)


def opened() -> DiffusersModel:
    return loading.load("embedded", DEVICE, ModelOptions("fp16" if ON_GPU else "bf16"))


@pytest.fixture
def model() -> DiffusersModel:
    return opened()


def dataset_for(model: DiffusersModel) -> Dataset:
    return load_dataset(tiny_model.DEMO, model, Frame((64, 64)), Prompter(NAME, ("a photo of [name]",)))


def trainer_for(model: DiffusersModel, steps: int = 30, state: Any = None, **options: Any) -> Trainer:
    vectors = {key: torch.full((2, width), 0.01) for key, width in model.widths.items()}
    config = TrainConfig(max_steps=steps, **options)
    return Trainer(model, dataset_for(model), Embedding(NAME, vectors), config, state)


@contextmanager
def no_waiting() -> Iterator[None]:
    """Within it waiting for the GPU is an error."""
    if ON_GPU:
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if ON_GPU:
            torch.cuda.set_sync_debug_mode("default")


def gradient(model: DiffusersModel) -> torch.Tensor:
    trainer = trainer_for(model)
    batch = next(trainer._batches())
    with model.training():
        _, found = trainer._objective.gradients(trainer.trials, batch, 1, None, lambda message: None)
    return torch.cat([each.flatten() for each in found]).cpu()


@pytest.mark.parametrize("precision", [pytest.param("fp16", marks=needs_gpu), "bf16", "fp32"])
def test_vectors_are_learned_in_each_precision(precision: str) -> None:
    trainer = trainer_for(loading.load("embedded", DEVICE, ModelOptions(precision)))
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
    """Another tensor, a balloon, takes the GPU's memory away, for the first attempt only."""
    trainer = trainer_for(model, 5)
    model.fit_memory(64, mode="none")
    reduce, balloon = model.reduce_memory, []

    def run_out(*_: Any) -> None:
        if not balloon and not ON_GPU:
            balloon.append(None)
            message = "CUDA out of memory, as a GPU says it"
            raise torch.cuda.OutOfMemoryError(message)
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


def test_a_resumed_run_continues(model: DiffusersModel) -> None:
    whole = trainer_for(model, 20)
    list(whole.run())
    first = trainer_for(model, 10)
    list(first.run())
    again = trainer_for(opened(), 20, first.state())
    list(again.run())
    for key, each in again.embedding.vectors.items():
        torch.testing.assert_close(each, whole.embedding.vectors[key], rtol=0, atol=1e-3)


def test_a_run_is_resumed_by_a_new_process(tmp_path: Path) -> None:
    places = ("--embeddings-dir", tmp_path, "--log-dir", tmp_path / "runs")
    for more in (("--init-text", "star", "--max-steps", 5), ("--resume", "--max-steps", 10)):
        command = [sys.executable, "-m", "ti_trainer", *map(str, (*RESUMED, *more, *places))]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stdout + found.stderr
    assert formats.read(tmp_path / f"{NAME}.safetensors").step == 10


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
    with no_waiting():
        update(3)


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
    vectors = {NAME: {key: each.to(DEVICE) for key, each in trainer.embedding.vectors.items()}}
    image = sampling.generate(model, GenerationRequest(f"a photo of {NAME}", steps=5), vectors)
    low, high = image.convert("L").getextrema()
    assert high > low


@needs_gpu
@pytest.mark.parametrize("in_thread", [False, True], ids=["here", "in a thread, as on the page"])
def test_a_compiled_network_trains_as_an_uncompiled_one(model: DiffusersModel, in_thread: bool) -> None:
    """With CUDA graphs where this torch can use them."""
    model.fit_memory(64, mode="none")
    wanted = trainer_for(model, 10)
    list(wanted.run())

    def train() -> tuple[str, Trainer, list[Any]]:
        trainer = trainer_for(model, 10)
        message = model.compile("on", 10, 1, lambda: None)
        return message, trainer, list(trainer.run())

    with ThreadPoolExecutor(1) as pool:
        message, trainer, events = pool.submit(train).result() if in_thread else train()
    model.use_all_memory()
    reduced = [each.message for each in events if isinstance(each, MemoryReduced)]
    assert not reduced, (message, reduced)
    assert trainer.step == 10
    for key, each in trainer.embedding.vectors.items():
        moved = (wanted.embedding.vectors[key] - 0.01).norm()
        assert (each - wanted.embedding.vectors[key]).norm() < 0.1 * moved, "rounding differs, but not more"
