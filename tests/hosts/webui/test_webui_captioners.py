"""The WebUI's own captioners over a stand-in for its interrogator and DeepDanbooru: what they say, and leave behind."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from threading import Lock
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ti_trainer.captioning.captioners import opened
from ti_trainer.config.preprocessing import PreprocessConfig
from ti_trainer.errors import ConfigError

OURS = tuple(f"ti_trainer.hosts.webui.{name}" for name in ("captioners", "forks", "lease"))
RED = Image.new("RGB", (30, 20), "red")


class Placed(nn.Module):
    """A network that knows where it is: `meta` stands for a GPU, on which nothing can be computed here."""

    def __init__(self) -> None:
        super().__init__()
        self.place = "cpu"

    def to(self, device: Any, *rest: Any) -> Placed:
        self.place = str(device)
        return self


class Interrogator:
    """As `modules/interrogate.py` has it."""

    def __init__(self, webui: Webui) -> None:
        self.webui, self.blip_model, self.clip_model = webui, None, None
        self.held: list[bool] = []

    def load(self) -> None:
        self.held.append(self.webui.queue_lock.locked())
        if self.webui.offline:
            files: list[str] = []
            files[0]  # so it is there
        torch.rand(3)
        self.blip_model, self.clip_model = self.blip_model or Placed(), self.clip_model or Placed()
        self.blip_model.to("gpu")
        self.clip_model.to("gpu")

    def send_clip_to_ram(self) -> None:
        if self.clip_model is not None:
            self.clip_model.to("cpu")

    def unload(self) -> None:
        self.send_clip_to_ram()
        if self.blip_model is not None:
            self.blip_model.to("cpu")

    def generate_caption(self, image: Image.Image) -> str:
        self.held.append(self.webui.queue_lock.locked())
        assert (self.blip_model.place, self.clip_model.place) == ("gpu", "cpu")
        return f"an image of {image.mode} {image.width} x {image.height}"


class Network(Placed):
    """Looks at the middle of an image: (B, 512, 512, 3) in [0, 1]."""

    tags = ("red_hair", "green_(x)", "blue_sky", "rating:safe")

    def forward(self, pixels: Tensor) -> Tensor:
        assert self.place == "cpu_computing"
        assert pixels.shape[1:] == (512, 512, 3)
        middle = pixels[:, 256, 256]
        return torch.cat([middle * 0.9, torch.ones(len(pixels), 1)], 1)


class DeepDanbooru:
    """As `modules/deepbooru.py` has it."""

    def __init__(self, webui: Webui) -> None:
        self.webui, self.model = webui, None

    def start(self) -> None:
        assert self.webui.queue_lock.locked()
        if self.webui.offline:
            message = "no network"
            raise OSError(message)
        self.model = self.model or Network()
        self.model.to("cpu_computing")

    def stop(self) -> None:
        self.model.to("cpu")


class Webui:
    """What of the WebUI is imported."""

    def __init__(self) -> None:
        self.queue_lock, self.offline, self.made_room = Lock(), False, 0
        self.interrogator, self.deepbooru = Interrogator(self), DeepDanbooru(self)
        self.paths = {"BLIP": "repositories/BLIP"}

    def modules(self) -> dict[str, Any]:
        def make_room() -> None:
            self.made_room += 1

        def resize_image(mode: int, image: Image.Image, width: int, height: int) -> Image.Image:
            assert mode == 2
            return image.resize((width, height))

        cpu = torch.device("cpu")
        return {
            "shared": SimpleNamespace(interrogator=self.interrogator),
            "devices": SimpleNamespace(
                device=cpu, device_interrogate="gpu", dtype=torch.float32, autocast=lambda: nullcontext()
            ),
            "images": SimpleNamespace(resize_image=resize_image),
            "lowvram": SimpleNamespace(send_everything_to_cpu=make_room),
            "paths": SimpleNamespace(paths=self.paths, models_path="/webui/models"),
            "progress": SimpleNamespace(),
            "call_queue": SimpleNamespace(queue_lock=self.queue_lock),
            "deepbooru": SimpleNamespace(model=self.deepbooru),
        }


@pytest.fixture
def webui(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webui]:
    made = Webui()
    package = ModuleType("modules")
    monkeypatch.setitem(sys.modules, "modules", package)
    for name, each in made.modules().items():
        monkeypatch.setitem(sys.modules, f"modules.{name}", each)
        setattr(package, name, each)
    for name in OURS:
        sys.modules.pop(name, None)
    yield made
    for name in OURS:
        sys.modules.pop(name, None)


@pytest.fixture
def host(webui: Webui) -> Any:
    class Host:
        @property
        def captioners(self) -> Any:
            return importlib.import_module(OURS[0]).offered()

    return Host()


def captioned(host: Any, names: str, image: Image.Image = RED, **options: Any) -> str:
    with opened(PreprocessConfig(captioners=names, **options), host.captioners, "cpu") as caption:
        return caption(image)


def test_both_are_offered_where_the_host_has_them(webui: Webui, host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(host.captioners) == ["webui-blip", "deepbooru"]
    monkeypatch.setitem(sys.modules, "modules.deepbooru", None)
    monkeypatch.delattr(sys.modules["modules"], "deepbooru")
    assert list(host.captioners) == ["webui-blip"]
    webui.paths.clear()
    assert list(host.captioners) == []


def test_blip_of_the_host_says_its_sentence(host: Any) -> None:
    assert captioned(host, "webui-blip", RED.convert("RGBA")) == "an image of RGB 30 x 20"


def test_tags_of_deepbooru_follow_our_options(host: Any) -> None:
    image = Image.new("RGB", (30, 20), (255, 200, 100))
    assert captioned(host, "deepbooru", image) == r"red hair, green \(x\), blue sky"
    assert captioned(host, "deepbooru", image, general_threshold=0.75) == "red hair"
    assert captioned(host, "deepbooru", image, tag_exclude="red_hair", tag_escape=False) == "green (x), blue sky"


def test_several_at_once_do_not_wait_for_each_other(host: Any) -> None:
    assert captioned(host, "deepbooru, webui-blip") == "red hair, an image of RGB 30 x 20"


def test_the_queue_is_held_for_each_image_and_free_between_them(webui: Webui, host: Any) -> None:
    with opened(PreprocessConfig(captioners="webui-blip"), host.captioners, "cpu") as caption:
        assert not webui.queue_lock.locked()
        caption(RED)
        assert not webui.queue_lock.locked()
        webui.interrogator.unload()  # as the host's own button does
        caption(RED)
    assert webui.interrogator.held == [True, True, True]
    assert webui.made_room == 3


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_given_back(webui: Webui, host: Any, fails: bool) -> None:
    before = torch.get_rng_state()
    with (
        pytest.raises(ZeroDivisionError) if fails else nullcontext(),
        opened(PreprocessConfig(captioners="webui-blip, deepbooru"), host.captioners, "cpu") as caption,
    ):
        caption(RED)
        _ = 1 / 0 if fails else None
    assert webui.interrogator.blip_model.place == webui.interrogator.clip_model.place == "cpu"
    assert webui.deepbooru.model.place == "cpu"
    assert not webui.queue_lock.locked()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("webui-blip", r"could not load BLIP or CLIP \(IndexError.*by hand: /webui/models/BLIP/model_base_caption"),
        ("deepbooru", r"could not load DeepDanbooru \(OSError: no network\).*/webui/models/torch_deepdanbooru/model-resnet"),
    ],
)
def test_without_a_network_it_is_said_what_to_do(webui: Webui, host: Any, name: str, said: str) -> None:
    webui.offline = True
    with pytest.raises(ConfigError, match=said) as caught:
        captioned(host, name)
    assert caught.value.option == "captioners"
    assert not webui.queue_lock.locked()
