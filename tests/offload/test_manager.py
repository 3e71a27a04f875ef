"""The MemoryManager: a plan acts while it is active, each fit starts without measures, and errors add one at a time."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import nn

from ti_trainer.offload import manager as module
from ti_trainer.offload.manager import MemoryManager, Networks
from ti_trainer.offload.plan import ACTIVATIONS, GIB, OVERHEAD, PLANS, WORKING, MemoryPlan, bytes_of

RAN_OUT = torch.cuda.OutOfMemoryError("CUDA out of memory")


class Block(nn.Module):
    """What a manager takes for a layer of a text encoder, or for a residual block."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            self.add_module(name, nn.Linear(8, 8))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        for layer in self.children():
            states = layer(states)
        return states


class Cuda:
    """As much of a CUDA device as a manager asks for."""

    type = "cuda"


class Vae(nn.Linear):
    """Counts how often it is moved: every second time it comes back."""

    moves = 0

    def to(self, *args: Any) -> Vae:
        self.moves += 1
        return self


def manager(**networks: Any) -> MemoryManager:
    unet = nn.Sequential(Block("norm1", "conv1", "norm2", "conv2"))
    texts = (nn.Sequential(Block("self_attn", "mlp", "layer_norm1")),)
    parts = {"family": "SDXL", "device": torch.device("cpu"), "dtype": torch.float32, "vae": Vae(2, 2), **networks}
    return MemoryManager(Networks(unet, texts, **parts))


def patched_blocks(memory: MemoryManager) -> int:
    networks = memory.networks
    return sum("forward" in vars(each) for part in (networks.unet, *networks.text_encoders) for each in part.modules())


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> MemoryManager:
    """6.3 GB are free while the VAE is on the device."""
    vae = Vae(2, 2)
    monkeypatch.setattr(module, "bytes_of", lambda *parts, not_on=None: 0 if not_on else bytes_of(*parts))
    monkeypatch.setattr(module, "free_bytes", lambda device: int((6.6 if vae.moves % 2 else 6.3) * GIB))
    return manager(vae=vae, device=Cuda(), dtype=torch.float16)


def test_a_plan_acts_only_while_it_is_active() -> None:
    memory = manager()
    assert memory.fit(64, mode="checkpointing") == "To save memory: gradient checkpointing (steps take up to 50% longer)."
    assert patched_blocks(memory) == 0
    with suppress(ZeroDivisionError), memory.active():
        assert patched_blocks(memory) == 1
        memory.use(PLANS["offload-all"])
        assert patched_blocks(memory) == 2
        1 / 0  # noqa: B018
    assert patched_blocks(memory) == 0
    assert all(each.numel() for each in memory.networks.unet.parameters())
    assert memory.plan == PLANS["offload-all"], "for the next time"


def test_each_fit_measures_the_memory_without_measures(on_gpu: MemoryManager) -> None:
    on_gpu.activate()
    latent_pixels = int((6.3 * GIB + 1 - OVERHEAD) / (ACTIVATIONS["SDXL"] + WORKING)) + 1  # a little more than fits
    messages = {on_gpu.fit(latent_pixels) for _ in range(3)}
    assert len(messages) == 1
    assert "the VAE is kept in RAM" in messages.pop()
    assert on_gpu.networks.vae.moves == 5  # away, back, away, back, away
    on_gpu.reset()
    assert on_gpu.networks.vae.moves == 6
    assert on_gpu.plan == MemoryPlan()


def test_errors_add_one_measure_at_a_time(on_gpu: MemoryManager) -> None:
    plans = []
    with on_gpu.active():
        assert on_gpu.reduce(ValueError()) == ""
        while on_gpu.reduce(RAN_OUT):
            plans.append(on_gpu.plan)
        assert on_gpu.networks.vae.moves == 1
    assert plans == [PLANS[mode] for mode in ("offload-vae", "checkpointing", "offload-text", "offload-all")]
    assert on_gpu.networks.vae.moves == 2


@pytest.mark.parametrize("networks", [{"host_offloads_vae": True}, {"host_offloads_weights": True}])
def test_a_vae_that_the_host_moves_is_left_to_it(networks: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda device: GIB)
    memory = manager(device=Cuda(), **networks)
    assert "VAE" not in memory.fit(64, mode="offload-vae")
    assert "gradient checkpointing" in memory.reduce(RAN_OUT)
    assert memory.plan == MemoryPlan(checkpointing=1.0)


def test_a_loss_on_pixels_keeps_the_vae_on_the_device(on_gpu: MemoryManager) -> None:
    on_gpu.fit(64, decoded=64, mode="offload-vae")
    on_gpu.reduce(RAN_OUT)
    assert not on_gpu.plan.offload_vae
    assert on_gpu.networks.vae.moves == 0
