"""Training steps of the WebUI's adapter on the pretended CUDA device of tests/fake_cuda, in half precision under autocast.

`test_webui_on_fake_cuda.py` runs this file, in a process with the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from device import CPU, CUDA, FakeDevice, fake_cuda, filled
from fakes import TinyHost
from test_webui_model import state
from updates import DREAMARTIST, check, trainer_for

from ti_trainer.hosts.webui.model import RuntimeSettings, WebuiModel
from ti_trainer.hosts.webui.model_spec import spec_of, text_stages
from ti_trainer.hosts.webui.text import prompt_encoders
from ti_trainer.model import MemoryMode
from ti_trainer.training.pixel_loss import PixelLoss
from ti_trainer.workbench import diagnosis

HALF = torch.float16
CASES: list[tuple[str, MemoryMode, dict[str, Any]]] = [
    ("SD 1.x", "none", {"pixel_loss": PixelLoss(1.0), "clip_grad": "value", "loss_weighting": "min-snr"}),
    ("SD 1.x inpainting", "checkpointing", {"optimizer": "sphere"}),
    ("SD 2.x", "offload-all", {}),
    ("SDXL", "none", DREAMARTIST),
    ("sgm SDXL", "8bit", DREAMARTIST),
]


@pytest.fixture
def device(sd_model: Any) -> Iterator[FakeDevice]:
    """After the network was made, which has to have tensors with data."""
    with fake_cuda() as device:
        yield device


def as_loaded(network: Any, *, on: torch.device = CUDA) -> Any:
    """As the WebUI has it after loading: in half precision but for its noise schedule, and not frozen."""
    trainable = [name for name, each in network.named_parameters() if each.requires_grad]
    filled(network)
    for name in trainable:
        network.get_parameter(name).requires_grad_()
    alphas_cumprod, network.alphas_cumprod = network.alphas_cumprod, None
    network.half()
    network.alphas_cumprod = network.alphas_cumprod_original = alphas_cumprod
    return network.to(on)


def model_over(network: Any, **settings: Any) -> WebuiModel:
    texts = prompt_encoders(network, CUDA, text_stages(network)[0].emphasize)
    autocast = partial(torch.autocast, "cuda", HALF)
    return WebuiModel(network, spec_of(network), texts, RuntimeSettings(CUDA, HALF, autocast, **settings))


def encoded(model: WebuiModel) -> set[tuple[torch.device, torch.dtype]]:
    """Where the latents of an image are."""
    with torch.no_grad():
        return {(each.device, each.dtype) for each in model.encode_images(torch.zeros(1, 3, 64, 64))}


@pytest.mark.parametrize(("sd_model", "mode", "options"), CASES, indirect=["sd_model"], ids=[each[0] for each in CASES])
def test_a_step_of_each_family(sd_model: Any, mode: MemoryMode, options: dict[str, Any], device: FakeDevice) -> None:
    model = model_over(as_loaded(sd_model))
    assert encoded(model) == {(CUDA, torch.float32)}
    model.fit_memory(64, decoded=64 if "pixel_loss" in options else 0, mode=mode)
    trainer = trainer_for(model, **options)
    if "pixel_loss" in options:
        with model.decoding() as decode:  # whether the VAE is finite in half precision is read once
            decode(torch.zeros(1, 4, 8, 8, device=CUDA))
    with model.training():  # moving weights waits
        check(trainer, device)
    assert {(each.device, each.dtype) for each in sd_model.model.parameters()} == {(CUDA, HALF)}
    assert all(each.numel() for each in sd_model.parameters())


@pytest.mark.parametrize("sd_model", ["SDXL"], indirect=True)
def test_with_medvram_the_networks_are_brought_to_the_gpu(sd_model: Any, device: FakeDevice) -> None:
    """As the WebUI's lowvram.py has them: in RAM, each with a hook that moves it and sends the last one back."""
    parts = (sd_model.model, getattr(sd_model, "conditioner", sd_model.cond_stage_model), sd_model.first_stage_model)
    as_loaded(sd_model, on=CPU).lowvram = True

    def send_me_to_gpu(module: Any, _: Any = None) -> None:
        for each in parts:
            each.to(CUDA if each is module else CPU)

    for each in parts:
        each.register_forward_pre_hook(send_me_to_gpu)
    model = model_over(sd_model, empty_device=lambda: send_me_to_gpu(None))
    assert encoded(model) == {(CUDA, torch.float32)}
    model.fit_memory(64)
    trainer = trainer_for(model)
    with model.training():
        check(trainer, device)
        assert {each.device for each in parts[2].parameters()} == {CPU}
        with model.restored():
            assert {each.device for part in parts for each in part.parameters()} == {CPU}
    assert {each.device for part in parts for each in part.parameters()} == {CPU}


def test_the_report_for_an_issue_measures_steps_and_restores_the_network(
    sd_model: Any, device: FakeDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = ("offload-all",)
    for name, value in (("STEPS", 0), ("STEPS_OF_PRECISION", 1), ("compiling", str), ("modes_for", lambda _: modes)):
        monkeypatch.setattr(diagnosis, name, value)
    host = TinyHost(tmp_path, model_over(as_loaded(sd_model)))
    before, allocated = state(sd_model), device.allocated
    lines = list(diagnosis.report(host))
    assert "model: tiny (SD 1.x, epsilon prediction), 64 px, batch size 1, float16" in lines
    measured = [line.split()[0] for line in lines if line.startswith("  ") and "ms a step" in line]
    assert measured == list(modes)
    assert "learning: finite, loss 1.0000 after 1 step" in lines
    assert state(sd_model) == before
    assert device.allocated == pytest.approx(allocated, rel=0.05)
    assert all(each.numel() and each.device == CUDA for each in sd_model.parameters())
