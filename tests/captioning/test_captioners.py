"""Captioners: which there are, how they work together, and the WD14 taggers with a real onnxruntime."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fakes import CHARACTER, GENERAL, RATING, TinyHost, colour_tagger, make_tagger
from PIL import Image

from ti_trainer import captioning
from ti_trainer.captioning import captioners, wd14
from ti_trainer.captioning.captioner import Captioner, HostCaptioner, Tags
from ti_trainer.captioning.captioners import available, chosen, labels, opened
from ti_trainer.config.preprocessing import PreprocessConfig
from ti_trainer.errors import ConfigError

SIZE_PX = 8
CPU = torch.device("cpu")
OURS = ", ".join(available())


def one_pixel(x: int, y: int, channel: int, weight: float) -> np.ndarray:
    weights = np.zeros((SIZE_PX, SIZE_PX, 3))
    weights[y, x, channel] = weight
    return weights


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def tags_of(image: Image.Image, folder: Path, **options: Any) -> dict[str, float]:
    return dict(wd14.load(PreprocessConfig(tagger=str(folder), **options), CPU)(image))


@pytest.fixture
def corners(tmp_path: Path) -> Any:
    """A tagger that tells what pixels it is given: for each channel and a few places, the sigmoid of value / 100 - 1."""

    def make(*, channels_last: bool = True) -> Path:
        tags = {
            f"{name}_{x}_{y}": (GENERAL, one_pixel(x, y, channel, 0.01))
            for channel, name in enumerate(("blue", "green", "red"))
            for x, y in ((0, 0), (7, 0), (0, 7), (3, 4))
        }
        return make_tagger(tmp_path / "corners", tags, bias=-1, channels_last=channels_last)

    return make


def pixels_seen(image: Image.Image, folder: Path) -> dict[str, float]:
    """What the tagger of `corners` was given, by its tags."""
    found = tags_of(image, folder, general_threshold=0)
    return {tag: (math.log(score / (1 - score)) + 1) * 100 for tag, score in found.items()}


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_tagger_is_given_bgr_from_0_to_255(corners: Any, channels_last: bool) -> None:
    image = Image.new("RGB", (SIZE_PX, SIZE_PX), (10, 120, 250))
    image.putpixel((7, 0), (200, 0, 30))
    seen = pixels_seen(image, corners(channels_last=channels_last))
    assert seen["red_3_4"] == pytest.approx(10, abs=0.1)
    assert seen["green_0_7"] == pytest.approx(120, abs=0.1)
    assert seen["blue_0_0"] == pytest.approx(250, abs=0.1)
    assert [seen[f"{name}_7_0"] for name in ("red", "green", "blue")] == pytest.approx([200, 0, 30], abs=0.1)


def test_a_image_lies_in_the_middle_of_a_white_square(corners: Any) -> None:
    folder = corners()
    wide = pixels_seen(Image.new("RGB", (8, 4), (60, 60, 60)), folder)
    assert [wide[f"red_{place}"] for place in ("0_0", "0_7", "3_4")] == pytest.approx([255, 255, 60], abs=0.1)
    large = pixels_seen(Image.new("RGB", (48, 80), (60, 60, 60)), folder)
    assert [large[f"red_{place}"] for place in ("0_0", "7_0", "3_4")] == pytest.approx([255, 255, 60], abs=10)  # it rings


def test_it_is_resized_bicubically(corners: Any) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    image = Image.fromarray(noise)
    red = image.resize((SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC).getpixel((3, 4))[0]
    assert red != image.resize((SIZE_PX, SIZE_PX), Image.Resampling.LANCZOS).getpixel((3, 4))[0]
    assert pixels_seen(image, corners())["red_3_4"] == pytest.approx(red, abs=0.1)


def test_scores_are_the_models(tmp_path: Path) -> None:
    folder = make_tagger(tmp_path / "tagger", {"grey": (GENERAL, one_pixel(3, 3, 0, 0.02))}, bias=-3)
    found = tags_of(Image.new("RGB", (SIZE_PX, SIZE_PX), (200, 200, 200)), folder)
    assert found == {"grey": pytest.approx(sigmoid(0.02 * 200 - 3), abs=1e-5)}


def test_a_red_image_has_red_hair(tmp_path: Path) -> None:
    folder = colour_tagger(tmp_path / "tagger")
    assert list(tags_of(Image.new("RGB", (30, 50), "red"), folder)) == ["red_hair"]
    assert list(tags_of(Image.new("RGB", (30, 50), (0, 255, 0)), folder)) == ["green_eyes"]


def test_each_category_has_its_threshold_and_ratings_are_dropped(tmp_path: Path) -> None:
    same = one_pixel(3, 3, 0, 0.01)  # 0.73 on white
    categories = {"hat": GENERAL, "alice": CHARACTER, "safe": RATING, "of_an_artist": 1}
    folder = make_tagger(tmp_path / "tagger", {name: (each, same) for name, each in categories.items()}, bias=-1.55)
    white = Image.new("RGB", (9, 9), "white")
    assert set(tags_of(white, folder)) == {"hat"}
    assert set(tags_of(white, folder, general_threshold=0.74, character_threshold=0.72)) == {"alice"}
    assert set(tags_of(white, folder, general_threshold=0, character_threshold=0)) == {"hat", "alice"}


def test_the_whole_way_from_a_image_to_its_caption(tmp_path: Path) -> None:
    folder = colour_tagger(tmp_path / "tagger")
    config = PreprocessConfig(captioners="wd14", tagger=f' "{folder}" ', general_threshold=0, tag_exclude="blue sky")
    with opened(config, device="cpu") as caption:
        assert caption(Image.new("RGB", (30, 20), (255, 90, 0))) == "red hair, green eyes"


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1", "CMYK"])
def test_images_of_every_kind_are_read_and_what_is_transparent_is_white(tmp_path: Path, mode: str) -> None:
    transparent = mode in ("RGBA", "LA", "P")
    black = Image.new("RGBA", (20, 20), (0, 0, 0, 0 if transparent else 255))
    image = black.convert("RGB").convert(mode) if mode in ("CMYK", "P") else black.convert(mode)
    if mode == "P":
        image.info["transparency"] = image.getpixel((0, 0))
    folder = make_tagger(tmp_path / "tagger", {"white": (GENERAL, one_pixel(3, 3, 1, 0.02))}, bias=-3)
    with opened(PreprocessConfig(captioners="wd14", tagger=str(folder)), device="cpu") as caption:
        assert caption(image) == ("white" if transparent else "")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "model.onnx").unlink(), r"has no model\.onnx\. Download model"),
        (lambda folder: (folder / "selected_tags.csv").unlink(), r"has no selected_tags\.csv\. Download"),
        (lambda folder: (folder / "model.onnx").write_bytes(b"no model"), "cannot be opened as an ONNX model"),
        (lambda folder: (folder / "selected_tags.csv").write_bytes(b"\xff\xfe1,2"), "not a table with the columns"),
        (lambda folder: (folder / "selected_tags.csv").write_text("a,b\n1,2\n"), "not a table with the columns"),
        (lambda folder: (folder / "selected_tags.csv").write_text("name,category\nhat\n"), "not a table with the columns"),
        (
            lambda folder: (folder / "selected_tags.csv").write_text("name,category\nhat,0\n"),
            "has 1 tags, but model.onnx has 4 outputs",
        ),
    ],
)
def test_a_folder_that_is_no_tagger_is_refused(tmp_path: Path, spoil: Any, said: str) -> None:
    folder = colour_tagger(tmp_path / "tagger")
    spoil(folder)
    with pytest.raises(ConfigError, match=said) as caught:
        tags_of(Image.new("RGB", (9, 9)), folder)
    assert caught.value.option == "tagger"
    assert "SmilingWolf's taggers" in str(caught.value)


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    folder = make_tagger(tmp_path / "tagger", {"hat": (GENERAL, np.zeros((8, 6, 3)))})
    with pytest.raises(
        ConfigError, match=r"has the input tensor\(float\) \['batch', 8, 6, 3\], expected float of \[N, size, size, 3\]"
    ):
        tags_of(Image.new("RGB", (9, 9)), folder)


def test_a_tagger_has_to_be_chosen(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"No tagger folder is chosen"):
        wd14.load(PreprocessConfig(), CPU)
    with pytest.raises(ConfigError, match=r"There is no folder .*nowhere"):
        wd14.load(PreprocessConfig(tagger=str(tmp_path / "nowhere")), CPU)


def test_without_onnxruntime_it_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = colour_tagger(tmp_path / "tagger")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match="needs the package onnxruntime") as caught:
        wd14.load(PreprocessConfig(tagger=str(folder)), CPU)
    assert str(caught.value).endswith(f"{sys.executable} -m pip install onnxruntime")


@pytest.mark.parametrize(
    ("device", "there", "expected"),
    [
        ("cpu", ["CUDAExecutionProvider"], ["CPUExecutionProvider"]),
        ("cuda", [], ["CPUExecutionProvider"]),
        ("cuda:1", ["CUDAExecutionProvider"], [("CUDAExecutionProvider", {"device_id": 1}), "CPUExecutionProvider"]),
    ],
)
def test_cuda_is_used_where_onnxruntime_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, there: list[str], expected: list[Any]
) -> None:
    asked: list[Any] = []
    monkeypatch.setitem(
        sys.modules,
        "onnxruntime",
        SimpleNamespace(
            get_available_providers=lambda: there, InferenceSession=lambda path, providers: asked.extend(providers)
        ),
    )
    for name in ("model.onnx", "selected_tags.csv"):
        (tmp_path / name).write_text("name,category\n")
    with pytest.raises(AttributeError):  # there is no session
        wd14.load(PreprocessConfig(tagger=str(tmp_path)), torch.device(device))
    assert asked == expected


def test_every_file_of_the_folder_is_a_captioner() -> None:
    files = {path.stem for path in Path(captioners.__file__).parent.glob("*.py")} - {
        "__init__",
        "captioner",
        "captioners",
        "tags",
    }
    assert set(available()) == files >= {"blip", "wd14"}
    assert all(each.LABEL and callable(each.load) for each in available().values())


def test_a_new_file_is_a_new_captioner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sizes.py").write_text(
        'LABEL = "Sizes"\ndef load(config, device):\n    return lambda p: f"{p.width} wide"\n'
    )
    monkeypatch.setattr(captioning, "__path__", [*captioning.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, f"{captioning.__name__}.sizes", raising=False)
    try:
        assert labels()["sizes"] == "Sizes"
        with opened(PreprocessConfig(captioners="sizes")) as caption:
            assert caption(Image.new("RGB", (7, 5))) == "7 wide"
    finally:
        sys.modules.pop(f"{captioning.__name__}.sizes", None)


def saying(said: str | Tags, events: list[str], name: str = "") -> HostCaptioner:
    """A host's captioner that always says the same, and notes when it is opened and closed."""

    @contextmanager
    def open_it(config: PreprocessConfig) -> Iterator[Captioner]:
        events.append(f"open {name}")
        try:
            yield lambda image: said
        finally:
            events.append(f"close {name}")

    return HostCaptioner(f"Label of {name}", open_it)


@pytest.fixture
def events() -> list[str]:
    return []


@pytest.fixture
def host(tmp_path: Path, events: list[str]) -> TinyHost:
    fail = HostCaptioner("fails", lambda config: _failing())
    taggers = {"one": [("long_hair", 0.9), ("hat", 0.5)], "two": [("Long hair", 0.8), ("cat", 0.1)]}
    sentences = {"words": " a woman ", "silent": ""}
    return TinyHost(
        tmp_path,
        captioners={name: saying(each, events, name) for name, each in {**taggers, **sentences}.items()} | {"fail": fail},
    )


@contextmanager
def _failing() -> Iterator[Captioner]:
    message = "its model cannot be had"
    raise ConfigError(message)
    yield


def captioned(host: TinyHost, names: str, **options: Any) -> str:
    with opened(PreprocessConfig(captioners=names, **options), host.captioners, "cpu") as caption:
        return caption(Image.new("RGB", (4, 4)))


def test_several_are_joined_in_their_order(host: TinyHost) -> None:
    assert captioned(host, "words, one") == "a woman, long hair, hat"
    assert captioned(host, "one,words , silent") == "long hair, hat, a woman"


def test_a_tag_that_two_find_is_written_once(host: TinyHost) -> None:
    assert captioned(host, "one, two") == "long hair, hat, cat"


def test_no_captioner_says_nothing(host: TinyHost) -> None:
    assert captioned(host, " , ") == ""


def test_a_captioner_named_twice_speaks_once(host: TinyHost) -> None:
    assert captioned(host, "words, words") == "a woman"


def test_hosts_captioners_are_given_back_in_the_end(host: TinyHost, events: list[str]) -> None:
    captioned(host, "one, words")
    assert events == ["open one", "open words", "close words", "close one"]


def test_hosts_captioners_are_given_back_when_another_cannot_be_opened(host: TinyHost, events: list[str]) -> None:
    with pytest.raises(ConfigError, match="cannot be had"):
        captioned(host, "one, fail, words")
    assert events == ["open one", "close one"]


def test_hosts_captioners_are_given_back_on_an_error(host: TinyHost, events: list[str]) -> None:
    with pytest.raises(ZeroDivisionError), opened(PreprocessConfig(captioners="one"), host.captioners, "cpu"):
        _ = 1 / 0
    assert events == ["open one", "close one"]


def test_an_unknown_name_is_refused_before_anything_is_opened(host: TinyHost, events: list[str]) -> None:
    with pytest.raises(ConfigError, match=f"found nobody, clip, expected names from {OURS}, .*words") as caught:
        captioned(host, "one, nobody, clip")
    assert caught.value.option == "captioners"
    assert events == []


def test_what_is_the_hosts_own_is_there_only_with_that_host(host: TinyHost) -> None:
    assert chosen(PreprocessConfig(captioners="words"), host.captioners) == ["words"]
    with pytest.raises(ConfigError, match=re.escape(f"expected names from {OURS}.")):
        chosen(PreprocessConfig(captioners="words"))
    assert labels(host.captioners)["words"] == "Label of words"
    assert "words" not in labels()


def test_models_are_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    import gc
    import weakref

    class Model:
        def __call__(self, image: Image.Image) -> str:
            return "an image"

    made: list[weakref.ref[Model]] = []

    def load(config: PreprocessConfig, device: torch.device) -> Model:
        model = Model()
        made.append(weakref.ref(model))
        return model

    monkeypatch.setattr(wd14, "load", load)
    with opened(PreprocessConfig(captioners="wd14"), device="cpu") as caption:
        assert caption(Image.new("L", (2, 2))) == "an image"
        assert made[0]() is not None
    gc.collect()
    assert made[0]() is None  # although `caption` is still there


def test_a_device_that_is_not_there_is_refused() -> None:
    with (
        pytest.raises(ConfigError, match="The device 'nonsense' cannot be used here"),
        opened(PreprocessConfig(), None, "nonsense"),
    ):
        pass
