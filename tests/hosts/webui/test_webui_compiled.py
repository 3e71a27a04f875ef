"""The host's U-Net compiled for the time of training, and timesteps embedded where it computes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_webui_model import batch, state

from ti_trainer.hosts.webui.patches import without_waits
from ti_trainer.offload.compiling import NO_MEMORY
from ti_trainer.offload.patching import patched
from ti_trainer.training.step import training_loss


def outcome(model: Any, words: Any) -> list[torch.Tensor]:
    loss = training_loss(model, batch(), words).mean()
    return [loss.detach(), *torch.autograd.grad(loss, list(words["zz-cat"].values()))]


def test_it_is_compiled_once_even_if_the_host_uses_it_meanwhile(
    webui_model: Callable[..., Any], sd_model: Any, words: Any, graphs: list[int]
) -> None:
    model, begun = webui_model(), []
    wanted, before = outcome(model, words), state(sd_model)
    assert "compiled" in model.compile("on", 10, 1, lambda: begun.append(1))
    with model.training():
        first = outcome(model, words)
        with model.restored():
            assert state(sd_model) == before
        second = outcome(model, words)
    assert (len(graphs), begun) == (1, [1])
    for found, again, eager in zip(first, second, wanted, strict=True):
        assert torch.equal(found, again)
        torch.testing.assert_close(found, eager, rtol=1e-5, atol=1e-6)
    assert state(sd_model) == before
    assert model.memory.compiled is None
    outcome(model, words)
    assert len(graphs) == 1


def test_what_fails_is_given_up_once(webui_model: Callable[..., Any], words: Any, monkeypatch: Any) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("no kernels today")

    compile_as_always, model = torch.compile, webui_model()
    monkeypatch.setattr(torch, "compile", lambda network, **_: compile_as_always(network, backend=fail))
    with model.training():
        wanted = outcome(model, words)
    assert model.reduce_memory(ValueError()) == ""
    model.compile("on", 10, 1, lambda: None)
    with model.training():
        with pytest.raises(Exception, match="no kernels today") as raised:
            outcome(model, words)
        assert "no kernels today" in model.reduce_memory(raised.value)
        assert model.reduce_memory(raised.value) == ""
        assert all(torch.equal(*each) for each in zip(outcome(model, words), wanted, strict=True))


def test_a_network_that_comes_and_goes_is_not_compiled(webui_model: Callable[..., Any], sd_model: Any) -> None:
    sd_model.lowvram = True
    model = webui_model()
    assert [model.compile(when, 9**9, 1, lambda: None) for when in ("auto", "on")] == ["", NO_MEMORY]


@pytest.mark.parametrize("dim", [32, 33])
def test_timesteps_are_embedded_as_by_the_original_code(sd_model: Any, dim: int) -> None:
    unet = sd_model.model.diffusion_model
    module = sys.modules["ldm.modules.diffusionmodules.openaimodel"]
    original, timesteps = module.timestep_embedding, torch.tensor([0.0, 1.0, 500.0, 999.0])
    with patched(without_waits(unet)):
        assert module.timestep_embedding is not original
        found = module.timestep_embedding(timesteps, dim)
        again = module.timestep_embedding(timesteps, dim, repeat_only=True)
    assert module.timestep_embedding is original
    torch.testing.assert_close(found, original(timesteps, dim), rtol=0, atol=1e-6)
    assert torch.equal(again, original(timesteps, dim, repeat_only=True))
