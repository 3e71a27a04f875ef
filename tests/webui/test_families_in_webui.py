"""SDXL, SD 2.x and inpainting in the real WebUI: our numbers are its own, and words are created, trained and used there."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export import export_family
from hosts import A1111, kind_of
from PIL import Image
from safetensors.torch import load_file, save_file
from server import Server
from test_extension import DEMO, our_status, stopped, until
from test_numbers import check

pytestmark = pytest.mark.webui
NAMES = ("sd1-inpainting", "sd2", "sd2-v", "sdxl", "sdxl-v", "sdxl-inpainting")
KINDS = {  # in the words of the page
    "sd1-inpainting": "SD 1.x inpainting, epsilon prediction",
    "sd2": "SD 2.x, epsilon prediction",
    "sd2-v": "SD 2.x, v prediction",
    "sdxl": "SDXL, epsilon prediction",
    "sdxl-v": "SDXL, v prediction, zero terminal SNR",
    "sdxl-inpainting": "SDXL inpainting, epsilon prediction",
}
V_BY_YAML = "sdxl-v-by-yaml"
DRAWING = {"seed": 1, "steps": 5, "cfg_scale": 5, "width": 64, "height": 64, "sampler_name": "Euler"}
PREVIEWS = {
    "preview_sampler": "Euler",
    "preview_sampling_steps": 5,
    "preview_cfg_scale": 5,
    "preview_seed": 1,
    "preview_width": 64,
    "preview_height": 64,
    "preview_every": 0,
    "save_cards": False,
}


@pytest.fixture(scope="module")
def families_webui(checkout: Path, serve: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A WebUI with a checkpoint of each family. One SDXL file says itself that it predicts v, another only in its .yaml."""
    data = tmp_path_factory.mktemp("families")
    for name in NAMES:
        export_family(name, checkout, data)
    if kind_of(checkout).yaml_beside:
        _tell_the_host(data / "models" / "Stable-diffusion")
    with serve(data) as running:
        yield running


def _tell_the_host(models: Path) -> None:
    """The model that predicts v once more, so that the host knows it."""
    weights = load_file(models / "sdxl-v.safetensors")
    save_file({name: each for name, each in weights.items() if each.numel()}, models / f"{V_BY_YAML}.safetensors")
    text = (models / "sdxl-v.yaml").read_text(encoding="utf-8")
    (models / f"{V_BY_YAML}.yaml").write_text(text.replace("EpsScaling", "VScaling"), encoding="utf-8")


def choose(webui: Server, name: str, noise_schedule: str = "Default") -> None:
    webui.api("/sdapi/v1/options", {"sd_model_checkpoint": f"{name}.safetensors", "sd_noise_schedule": noise_schedule})


def load(webui: Server, name: str, noise_schedule: str = "Default") -> None:
    """Choose it and see that it is loaded, which Forge does only for an image."""
    choose(webui, name, noise_schedule)
    if webui.kind.loaded is None:
        drawn(webui, "a photo")


def drawn(webui: Server, prompt: str) -> np.ndarray:
    """By the host itself."""
    found = webui.api("/sdapi/v1/txt2img", {"prompt": prompt, **DRAWING})["images"][0]
    return np.asarray(Image.open(BytesIO(base64.b64decode(found))))


def begin(webui: Server, name: str, max_steps: int, **options: Any) -> None:
    given = {"max_steps": max_steps, "save_every": 0, "width": 64, "height": 64, **PREVIEWS, **options}
    given["preview_prompt"] = f"a photo of {name}"
    webui.endpoint("ti_trainer_train", name, str(DEMO), json.dumps(given))


def trained(webui: Server, name: str, max_steps: int) -> dict[str, Any]:
    begin(webui, name, max_steps, preview_every=3)
    until(lambda: our_status(webui)["status"] in ("done", "failed", "stopped"))
    return our_status(webui)


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_the_hosts_own(families_webui: Server, name: str) -> None:
    choose(families_webui, name)
    differences = families_webui.api("/ti-check/compare?clip_skip=2")
    assert ("pooled, end" in differences) == ("sdxl" in name)
    check(differences)


@pytest.mark.parametrize("name", NAMES)
def test_a_word_is_created_trained_drawn_and_gone_on_with(families_webui: Server, name: str) -> None:
    webui, word = families_webui, f"my-{name}"
    choose(webui, name)
    own = drawn(webui, "a photo of a blue circle")
    assert "Created" in webui.endpoint("ti_trainer_create", word, "red star", 2, True)[0]
    at_first = drawn(webui, f"a photo of {word}")
    done = trained(webui, word, 6)
    assert (done["status"], done["step"]) == ("done", 6), done["message"]
    run = Path(done["run"])
    assert json.loads((run / "settings.json").read_text(encoding="utf-8"))["model"] == name

    check(webui.api(f"/ti-check/compare-file?name={word}"), least=5)
    assert np.array_equal(own, drawn(webui, "a photo of a blue circle")), "the host draws as before"

    preview = np.asarray(Image.open(run / "images" / f"{word}-6.png"))
    if name == "sdxl-v" and webui.kind is A1111:  # whose schedule and prediction the forks find out
        assert not np.array_equal(preview, drawn(webui, f"a photo of {word}"))
        choose(webui, V_BY_YAML, "Zero Terminal SNR")
    now = drawn(webui, f"a photo of {word}")
    assert np.array_equal(preview, now)
    assert not np.array_equal(at_first, now)
    choose(webui, name)

    begin(webui, word, 100_000)
    until(lambda: our_status(webui)["step"] > 2)
    step = stopped(webui)["step"]
    webui.endpoint("ti_trainer_resume")
    until(lambda: our_status(webui)["step"] > step + 2)
    assert stopped(webui)["status"] == "stopped"


def test_a_word_of_another_family_is_refused_by_name(families_webui: Server) -> None:
    choose(families_webui, "sdxl")
    with pytest.raises(RuntimeError, match=r"my-sd2.*is for .*SDXL \(clip_l 64, clip_g 128\)"):
        begin(families_webui, "my-sd2", 3)


def test_epsilon_with_zero_terminal_snr_is_refused(families_webui: Server) -> None:
    choose(families_webui, "sdxl")
    with pytest.raises(RuntimeError, match="found on with epsilon prediction"):
        begin(families_webui, "my-sdxl", 3, zero_terminal_snr="on")


def test_the_hosts_zero_terminal_snr_is_for_v_alone_and_stays_its_own(families_webui: Server) -> None:
    load(families_webui, "sd2-v", "Zero Terminal SNR")
    assert families_webui.api("/ti-check/describe") == "sd2-v (SD 2.x, v prediction, zero terminal SNR)"
    load(families_webui, "sdxl", "Zero Terminal SNR")
    assert families_webui.api("/ti-check/describe") == "sdxl (SDXL, epsilon prediction)"
    before = drawn(families_webui, "a photo of a blue circle")
    families_webui.endpoint("ti_trainer_create", "my-schedule", "red star", 2, True)
    assert trained(families_webui, "my-schedule", 3)["status"] == "done"  # with a preview, which is drawn by the usual one
    assert families_webui.api("/sdapi/v1/options")["sd_noise_schedule"] == "Zero Terminal SNR"
    assert np.array_equal(before, drawn(families_webui, "a photo of a blue circle"))


def test_the_page_says_what_a_checkpoint_is(families_webui: Server) -> None:
    for name, kind in KINDS.items():
        load(families_webui, name)
        assert families_webui.api("/ti-check/describe") == f"{name} ({kind})"
