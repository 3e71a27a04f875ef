"""DreamArtist, masks and losses of pixels in the real WebUI, on a tiny model of each family; by its endpoints."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import transformers
from browser import complaints, launch
from export import export, export_family
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from server import Server
from test_extension import known, open_tab, our_status, until
from test_numbers import check

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from ti_trainer.hosts.diffusers.model import DiffusersModel

pytestmark = pytest.mark.webui
MODELS = ("embedded", "sdxl")
OTHERS = ("sd1-inpainting", "sd2", "sd2-v", "sd2-inpainting", "sdxl-v", "sdxl-inpainting")
HOSTS_OWN = "a photo of a blue circle"
DRAWING = {"seed": 1, "steps": 5, "width": 64, "height": 64, "sampler_name": "Euler"}
OPTIONS = {
    "width": 64,
    "height": 64,
    "learning_rate": "0.1",  # so that images of a model with random weights show it
    "negative": True,
    "train_cfg_scale": "3",
    "ema_rate": 0.9,
    "reconstruction_weight": 0.5,
    "mask_outside": 0.1,
    "save_every": 0,
    "preview_prompt": "a photo of [name]",
    "preview_sampler": "Euler",
    "preview_sampling_steps": 5,
    "preview_seed": 1,
}


@pytest.fixture(scope="module")
def webui(
    checkout: Path, serve: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory, embedded_model: DiffusersModel
) -> Iterator[Server]:
    data = tmp_path_factory.mktemp("dreamartist")
    export(embedded_model, checkout, data / "models" / "Stable-diffusion" / "embedded.safetensors")
    for name in (MODELS[1], *OTHERS):
        export_family(name, checkout, data)
    with serve(data) as running:
        yield running


@pytest.fixture
def options(image: Path, tmp_path: Path) -> dict[str, Any]:
    """Everything on: a mask lies beside the image, and a classifier judges."""
    with Image.open(image) as opened:
        mask = Image.new("L", opened.size)
    width, height = mask.size
    mask.paste(127, (width // 4, height // 4, width * 3 // 4, height * 3 // 4))
    mask.save(image.with_name("01_att.png"))
    return {**OPTIONS, "discriminator": str(_judge(tmp_path))}


def _judge(folder: Path) -> Path:
    """A classifier as transformers keeps one: TorchScript is not run in a WebUI."""
    torch.manual_seed(0)
    sizes = {"num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1], "num_labels": 2, "image_size": 32, "patch_size": 4}
    network = transformers.ConvNextForImageClassification(transformers.ConvNextConfig(**sizes))
    network.save_pretrained(folder / "judge", safe_serialization=True)
    return folder / "judge"


def drawn(webui: Server, prompt: str, negative_prompt: str = "", cfg_scale: float = 5) -> NDArray[np.uint8]:
    """By the host itself."""
    asked = {"prompt": prompt, "negative_prompt": negative_prompt, "cfg_scale": cfg_scale, **DRAWING}
    return _decoded(webui.api("/sdapi/v1/txt2img", asked)["images"][0])


def used(webui: Server, name: str) -> NDArray[np.uint8]:
    """The word and its negative, as both were trained; the host would not notice by itself that they mean something else."""
    drawn(webui, "", "something else")
    return drawn(webui, f"a photo of {name}", f"a photo of {name}-neg", 3)


def passed_through(webui: Server, image: Path) -> NDArray[np.uint8]:
    """The image, as the host encodes and decodes it with hardly a change."""
    asked = {"init_images": [base64.b64encode(image.read_bytes()).decode()], "denoising_strength": 0.1}
    return _decoded(webui.api("/sdapi/v1/img2img", {"prompt": HOSTS_OWN, "cfg_scale": 5, **asked, **DRAWING})["images"][0])


def _decoded(text: str) -> NDArray[np.uint8]:
    return np.asarray(Image.open(BytesIO(base64.b64decode(text))))


def host_as_it_is(webui: Server, image: Path) -> dict[str, Any]:
    """What it draws, what its settings are, and whether it waits for something."""
    state = webui.api("/sdapi/v1/progress")["state"]
    told = {name: state[name] for name in ("interrupted", "skipped", "stopping_generation", "job")}
    images = {"drawn": drawn(webui, HOSTS_OWN).tolist(), "passed": passed_through(webui, image).tolist()}
    return {**images, "settings": webui.api("/sdapi/v1/options"), "state": told}


def created(webui: Server, model: str, name: str) -> None:
    webui.api("/sdapi/v1/options", {"sd_model_checkpoint": f"{model}.safetensors"})
    said = webui.endpoint("ti_trainer_create_pair", name, "red star", 2, True, 3, "*")[0]
    assert f"Created {name}" in said


@contextmanager
def opened(webui: Server) -> Iterator[tuple[Page, list[str]]]:
    """The WebUI's page in a browser, and what its scripts complain about.

    Choose a model before: as it is opened, the page may choose once more the one that was there.
    """
    with launch(1300, 1000) as page:
        heard = complaints(page)
        page.goto(webui.url)
        page.locator("#txt2img_generate").wait_for()
        yield page, heard


def begin(webui: Server, name: str, image: Path, options: dict[str, Any]) -> None:
    webui.endpoint("ti_trainer_train", name, str(image.parent), json.dumps(options))


def ended(webui: Server) -> dict[str, Any]:
    until(lambda: our_status(webui)["status"] in ("done", "failed", "stopped"), webui.timeout_s)
    return our_status(webui)


def vectors(files: dict[str, Path]) -> dict[str, torch.Tensor]:
    return {f"{name} {key}": each for name, file in files.items() for key, each in load_file(file).items()}


@pytest.mark.parametrize("model", [*MODELS, *OTHERS])
def test_a_word_and_its_negative_are_learned_from_one_image(
    webui: Server, model: str, image: Path, options: dict[str, Any]
) -> None:
    name = f"my-{model}"
    negative = f"{name}-neg"
    created(webui, model, name)
    assert {name, negative} <= known(webui).keys()
    files = {each: webui.embeddings / f"{each}.safetensors" for each in (name, negative)}
    before, created_as = host_as_it_is(webui, image), vectors(files)
    used_at_first = used(webui, name)

    begin(webui, name, image, {**options, "max_steps": 6, "preview_every": 3})
    done = ended(webui)
    assert (done["status"], done["step"]) == ("done", 6), done["message"]
    run = Path(done["run"])
    settings = json.loads((run / "settings.json").read_text(encoding="utf-8"))
    assert (settings["model"], settings["num_images"]) == (model, 1), "the mask is no image"
    assert host_as_it_is(webui, image) == before
    for asked in ("compare?clip_skip=1", f"compare-file?name={name}", f"compare-file?name={negative}"):
        check(webui.api(f"/ti-check/{asked}"), least=5)

    loaded = known(webui)
    assert [loaded[each]["vectors"] for each in (name, negative)] == [2, 3]
    assert not webui.api("/sdapi/v1/embeddings")["skipped"].keys() & {name, negative}
    learned = vectors(files)
    assert learned.keys() == created_as.keys()
    assert not any(torch.equal(learned[key], each) for key, each in created_as.items())

    assert {each.name for each in (run / "images").iterdir()} == {f"{name}-{step}.png" for step in (0, 3, 6)}
    last = np.asarray(Image.open(run / "images" / f"{name}-6.png"))
    at_first = np.asarray(Image.open(run / "images" / f"{name}-0.png"))
    if model != "sdxl-v":  # which the host cannot draw by itself
        assert np.array_equal(last, used(webui, name))
        assert np.array_equal(at_first, used_at_first)
    assert not np.array_equal(last, drawn(webui, f"a photo of {name}", "a photo of", 3)), "the negative counts"


@pytest.mark.parametrize("model", MODELS)
def test_a_run_that_is_stopped_goes_on_exactly(webui: Server, model: str, image: Path, options: dict[str, Any]) -> None:
    name = f"my-stop-{model}"
    given = {**options, "max_steps": 80, "preview_every": 0, "latent_sampling": "random", "ema_every": 25}
    ends, stops = [], []
    for interrupted in (False, True):
        created(webui, model, name)
        before = host_as_it_is(webui, image)
        begin(webui, name, image, given)
        if interrupted:
            until(lambda: our_status(webui)["step"] > 2)
            webui.endpoint("ti_trainer_stop")
            stops.append(ended(webui))
            assert host_as_it_is(webui, image) == before
            webui.endpoint("ti_trainer_resume")
            until(lambda: our_status(webui)["step"] > stops[0]["step"])
        done = ended(webui)
        assert (done["status"], done["step"]) == ("done", 80), done["message"]
        copies = Path(done["run"]) / "embeddings"
        kinds = ("", "-neg", "-ema", "-neg-ema")
        ends.append(vectors({kind: copies / f"{name}{kind}-80.safetensors" for kind in kinds}))
    assert stops[0]["status"] == "stopped"
    assert 0 < stops[0]["step"] < 80
    assert done["run"] == stops[0]["run"]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[1][key], each) for key, each in ends[0].items())


@pytest.mark.parametrize("model", MODELS)
def test_a_failure_gives_the_host_back(webui: Server, model: str, image: Path, options: dict[str, Any]) -> None:
    name = f"my-failure-{model}"
    created(webui, model, name)
    before = host_as_it_is(webui, image)
    begin(webui, name, image, {**options, "max_steps": 80, "preview_every": 0, "learning_rate": "1e30"})
    failed = ended(webui)
    assert (failed["status"], "not a finite number" in failed["message"]) == ("failed", True)
    assert host_as_it_is(webui, image) == before
    for asked in (name, f"{name}-neg"):
        assert all(bool(each.isfinite().all()) for each in load_file(webui.embeddings / f"{asked}.safetensors").values())


def test_each_part_of_the_loss_makes_a_difference(webui: Server, image: Path, options: dict[str, Any]) -> None:
    without = {"reconstruction_weight": 0, "discriminator": "", "train_cfg_scale": "1", "mask_outside": 1}
    learned = []
    for given in ({}, {}, *({name: value} for name, value in without.items())):
        created(webui, "embedded", "my-parts")
        begin(webui, "my-parts", image, {**options, "max_steps": 3, "preview_every": 0, **given})
        assert ended(webui)["status"] == "done"
        learned.append(load_file(webui.embeddings / "my-parts.safetensors")["emb_params"])
    assert torch.equal(learned[0], learned[1])
    same = [name for name, other in zip(without, learned[2:], strict=True) if torch.equal(learned[0], other)]
    assert same == []


@pytest.mark.parametrize("model", MODELS)
def test_a_card_brings_the_word_and_its_negative(webui: Server, model: str, image: Path, options: dict[str, Any]) -> None:
    """The host reads the word of it, which is NAME-STEP, and of an SDXL one no name: there it is what the file is called."""
    name = f"my-card-{model}"
    created(webui, model, name)
    begin(webui, name, image, {**options, "max_steps": 3, "preview_every": 3})
    cards = Path(ended(webui)["run"]) / "image_embeddings"
    before = used(webui, name)
    for each in (name, f"{name}-neg"):
        (webui.embeddings / f"{each}.safetensors").unlink()
    webui.api("/sdapi/v1/refresh-embeddings", {})
    assert not np.array_equal(before, used(webui, name))

    word = f"{name}-3"
    shutil.copyfile(cards / f"{word}.png", webui.embeddings / f"{word}.png")
    webui.api("/sdapi/v1/refresh-embeddings", {})
    loaded = known(webui)
    assert (word in loaded, f"{word}-neg" in loaded) == (True, False)
    with opened(webui) as (page, _):
        open_tab(page, "Create embedding")
        page.locator("#ti_trainer_tabs .label-wrap:visible", has_text="Images with a negative embedding").click()
        page.click("#ti_trainer_extract_negatives")
        page.locator("#ti_trainer_extracted", has_text=f"{word}-neg.safetensors").first.wait_for()
    assert f"{word}-neg" in known(webui)
    assert np.array_equal(before, used(webui, word))
