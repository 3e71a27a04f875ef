"""reForge and Forge Classic, as stand-ins over real `ldm` modules: their weights, blocks, text encoders, missing parts."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from test_webui_model import batch
from torch import nn

from ti_trainer.hosts.webui.patches import replace_inference_tensors
from ti_trainer.training.step import training_loss

UNET_FILE = "ldm_patched.ldm.modules.diffusionmodules.openaimodel"
MODULES = ("forks", "settings", "captioners", "lease")


@pytest.fixture
def fork(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Forge Classic's modules and settings, as far as they are imported; gives our module about forks."""
    classic: dict[str, Any] = {
        "shared": SimpleNamespace(
            opts=SimpleNamespace(CLIP_stop_at_last_layers=1, data_labels={}), cmd_opts=SimpleNamespace(), interrogator=None
        ),
        "devices": SimpleNamespace(),
        "images": SimpleNamespace(),
        "paths": SimpleNamespace(paths={}),
        "progress": SimpleNamespace(),
        "call_queue": SimpleNamespace(queue_lock=None),
        "sd_samplers": SimpleNamespace(visible_sampler_names=lambda: ["Euler a", "DDIM"]),
        "scripts": SimpleNamespace(ScriptRunner=lambda: SimpleNamespace(alwayson_scripts=[])),
    }
    package, patched_package = ModuleType("modules"), ModuleType("ldm_patched")
    for name, each in classic.items():
        monkeypatch.setitem(sys.modules, f"modules.{name}", each)
        setattr(package, name, each)
    monkeypatch.setitem(sys.modules, "modules", package)
    for name in ("ldm_patched", "ldm_patched.modules", UNET_FILE):
        monkeypatch.setitem(sys.modules, name, patched_package)
    ours = importlib.import_module("ti_trainer.hosts.webui")
    for name in MODULES:  # as imported by other tests; `from` finds them in the package, too
        monkeypatch.delitem(sys.modules, f"{ours.__name__}.{name}", raising=False)
        monkeypatch.delattr(ours, name, raising=False)
    yield importlib.import_module(f"{ours.__name__}.{MODULES[0]}")
    for name in MODULES:
        sys.modules.pop(f"{ours.__name__}.{name}", None)
        ours.__dict__.pop(name, None)


class Manager:
    """A fork's memory manager, which has loaded a U-Net with a LoRA, and moves networks in inference mode."""

    def __init__(self, network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        unet, clip, vae = network.model.diffusion_model, network.cond_stage_model, network.first_stage_model
        self.networks, self.lora, self.original = (unet, clip, vae), unet.out[2], unet.out[2].weight.detach().clone()
        unet.dtype, unet.manual_cast_dtype, unet.get_dtype = torch.float32, None, lambda: torch.float32
        patchers = [SimpleNamespace(model=each) for each in self.networks]
        network.forge_objects_original = SimpleNamespace(
            unet=patchers[0], clip=SimpleNamespace(patcher=patchers[1]), vae=SimpleNamespace(first_stage_model=vae)
        )
        self.others = SimpleNamespace(model=SimpleNamespace(model=nn.Linear(1, 1))), SimpleNamespace(model=None)
        self.loaded: list[Any] = list(self.others)
        management = SimpleNamespace(current_loaded_models=self.loaded)
        monkeypatch.setitem(sys.modules, "ldm_patched.modules.model_management", management)
        self.load()

    def load(self) -> None:
        """As generating does. The LoRA's patcher is a clone of that of the network."""
        with torch.inference_mode():
            self._move()
            self.lora.weight = nn.Parameter(self.lora.weight + 0.1)
        clones = [SimpleNamespace(model=each) for each in self.networks]
        self.loaded += [SimpleNamespace(model=each, model_unload=self.unload) for each in clones]

    def unload(self) -> None:
        assert torch.is_inference_mode_enabled()
        self._move()
        self.lora.weight = nn.Parameter(self.original.clone())

    def _move(self) -> None:
        for network in self.networks:
            for module in network.modules():
                for name, each in module._parameters.items():
                    if each is not None:
                        module._parameters[name] = nn.Parameter(each.detach().clone())


class InPlaceBlock:
    """A transformer block as Forge Classic has it."""

    def _forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        n = self.norm1(x)
        n = self.attn1(n, context=None, value=None, transformer_options={})
        x += n
        n = self.norm2(x)
        n = self.attn2(n, context=context, value=None, transformer_options={})
        x += n
        x_skip = x
        x = self.ff(self.norm3(x))
        x += x_skip
        return x


def make_classic(unet: nn.Module) -> None:
    """Give a U-Net the in-place additions and the module of Forge Classic's."""
    unet.__class__ = type("UNetModel", (type(unet),), {"__module__": UNET_FILE})
    for block in [each for each in unet.modules() if type(each).__name__ == "BasicTransformerBlock"]:
        block.__class__ = type("BasicTransformerBlock", (InPlaceBlock, type(block)), {})


def gradient(model: Any, words: Any) -> torch.Tensor:
    vectors = words["zz-cat"]["clip_l"]
    with model.training():
        (found,) = torch.autograd.grad(training_loss(model, batch(), words).mean(), vectors)
    return found


@pytest.mark.parametrize("mode", ["none", "checkpointing", "offload-all"])
def test_a_fork_trains_as_the_webui_does(
    mode: str, fork: Any, webui_model: Callable[..., Any], sd_model: Any, words: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = sd_model.model.diffusion_model
    wanted = gradient(webui_model(), words)
    manager = Manager(sd_model, monkeypatch)
    make_classic(unet)
    attributes = {name: vars(module).keys() - {"training"} for name, module in sd_model.named_modules()}
    model = webui_model(
        clear_networks=lambda: fork.take_networks(sd_model), weights_in_ram=True, unet_changes=fork.unet_changes
    )
    model.fit_memory(64, mode=mode)
    for _ in range(2):  # the second time after an image
        assert next(unet.parameters()).is_inference()
        torch.testing.assert_close(gradient(model, words), wanted, rtol=1e-5, atol=1e-7)
        assert tuple(manager.loaded) == manager.others
        manager.load()
    assert attributes == {name: vars(module).keys() - {"training"} for name, module in sd_model.named_modules()}


def test_without_its_changes_it_could_not_be_trained(
    fork: Any, webui_model: Callable[..., Any], sd_model: Any, words: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the stand-ins would show nothing."""
    make_classic(sd_model.model.diffusion_model)
    with pytest.raises(RuntimeError, match="inplace operation"):
        gradient(webui_model(), words)
    Manager(sd_model, monkeypatch)
    with pytest.raises(RuntimeError, match=r"[Ii]nference"):
        gradient(webui_model(unet_changes=fork.unet_changes), words)


def test_a_shared_weight_stays_shared_and_the_host_can_go_on() -> None:
    with torch.inference_mode():
        table = nn.Embedding(3, 4)
        table.register_buffer("ids", torch.arange(3))
    table.same, table.weight.mark = table.weight, "kept"
    wrapper = nn.Module()
    wrapper.wrapped, wrapper.weight = table, table.weight
    ordinary = nn.Linear(4, 1)
    before, weight = table.weight.clone(), ordinary.weight
    wrapper.ordinary = ordinary
    replace_inference_tensors(wrapper)
    assert wrapper.weight is table.weight is table.same
    assert table.weight.mark == "kept"
    assert torch.equal(table.weight, before)
    assert not table.weight.is_inference()
    assert not table.ids.is_inference()
    assert ordinary.weight is weight
    ordinary(table(table.ids)).sum().backward()
    assert ordinary.weight.grad is not None
    with torch.inference_mode():
        table.to(torch.float64)(table.ids)


@pytest.mark.parametrize("sd_model", ["SDXL"], indirect=True)
def test_open_clips_encoder_is_used_as_the_fork_does(webui_model: Callable[..., Any], sd_model: Any, words: Any) -> None:
    """There it is a CLIP of transformers, so an attribute `transformer` says nothing about pooling."""
    wanted = webui_model().encode_prompts(["a zz-cat"], words)
    sd_model.conditioner.embedders[1].wrapped.transformer = nn.Identity()
    found = webui_model().encode_prompts(["a zz-cat"], words)
    assert torch.equal(found.hidden, wanted.hidden)
    assert torch.equal(found.pooled, wanted.pooled)


@pytest.mark.parametrize("sd_model", ["SDXL"], indirect=True)
def test_clip_skip_reaches_clip_l_where_the_host_says_so(fork: Any, sd_model: Any) -> None:
    stage = sd_model.conditioner.embedders[0]
    skips = [1, 2, 3]
    assert [fork.clip_l_skips(sd_model, each) for each in skips] == [False] * 3  # Forge Classic
    fork.shared.opts.sdxl_clip_l_skip = True
    assert [fork.clip_l_skips(sd_model, each) for each in skips] == [True] * 3  # AUTOMATIC1111's
    stage.minimal_clip_skip = 2
    assert [fork.clip_l_skips(sd_model, each) for each in skips] == [False, False, True]  # reForge


def test_the_dtype_is_the_networks_own(fork: Any, sd_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fork.unet_dtype(sd_model, torch.float16) == torch.float16
    Manager(sd_model, monkeypatch)
    network = sd_model.forge_objects_original.unet.model
    assert fork.unet_dtype(sd_model, torch.float16) == torch.float32
    network.manual_cast_dtype = torch.bfloat16
    assert fork.unet_dtype(sd_model, torch.float16) == torch.bfloat16
    assert not fork.is_stored_in_8_bits(sd_model)
    weight = sd_model.model.diffusion_model.out[2].weight
    weight.data = weight.data.to(torch.float8_e4m3fn)
    assert fork.is_stored_in_8_bits(sd_model)


def test_what_forge_classic_has_removed_is_not_missed(fork: Any) -> None:
    fork.empty_device()
    assert fork.setting("lowvram") is False
    fork.shared.cmd_opts.lowvram = True
    assert fork.setting("lowvram") is True
    settings = importlib.import_module("ti_trainer.hosts.webui.settings")
    host = settings.WebuiSettings(is_public=False)
    assert host.template_dirs == []
    assert host.samplers == ["Euler a", "DDIM"]
    assert host.defaults == {"clip_skip": 1, "precision": "auto"}
    assert host.captioners == {}


def test_an_image_of_a_fork_runs_no_scripts(fork: Any) -> None:
    forked, original = SimpleNamespace(forge_objects_original=None), SimpleNamespace()
    images = [SimpleNamespace(sd_model=each, scripts=None, script_args=None) for each in (forked, original)]
    for each in images:
        fork.without_scripts(each)
    assert (images[0].scripts.alwayson_scripts, images[0].script_args) == ([], [])
    assert (images[1].scripts, images[1].script_args) == (None, None)
