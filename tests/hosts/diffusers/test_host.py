"""The host without a WebUI: one model, one turn at a time, and folders that a page may read."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from ti_trainer.errors import ConfigError, ModelError
from ti_trainer.host import GenerationRequest, ModelOptions
from ti_trainer.hosts.diffusers import loading
from ti_trainer.hosts.diffusers.host import StandaloneHost
from ti_trainer.hosts.diffusers.model import DiffusersModel


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The precision of each time that a model was loaded."""
    precisions, load = [], loading.load

    def noted(model: str, device: str, options: ModelOptions) -> DiffusersModel:
        precisions.append(options.precision)
        return load(model, device, options)

    monkeypatch.setattr(loading, "load", noted)
    return precisions


@pytest.fixture
def host() -> StandaloneHost:
    return StandaloneHost(device="cpu")


def test_nothing_is_loaded_before_it_is_asked_for_and_then_once(host: StandaloneHost, loaded: list[str]) -> None:
    host.describe()
    assert loaded == []
    assert host.open_model() is host.open_model(ModelOptions()) is host.open_model()
    assert host.open_model(ModelOptions("fp32")).unet is host.open_model().unet
    assert loaded == ["auto"]


def test_another_clip_skip_is_the_same_weights(host: StandaloneHost, loaded: list[str]) -> None:
    first = host.open_model()
    second = host.open_model(ModelOptions(clip_skip=2))
    assert len(loaded) == 1
    assert (second.unet, second.text_encoders[0].module) == (first.unet, first.text_encoders[0].module)
    fresh = loading.load("embedded", "cpu", ModelOptions(clip_skip=2))
    hidden = [model.encode_prompts(["a red star"], {}).hidden for model in (first, second, fresh)]
    assert torch.equal(hidden[1], hidden[2])
    assert not torch.equal(hidden[0], hidden[1])
    assert first.options.clip_skip == 1  # a run that has it is not changed
    with pytest.raises(ConfigError, match="expected 1 to 3"):
        host.open_model(ModelOptions(clip_skip=4))
    assert host.open_model().options.clip_skip == 2  # as it is open
    assert host.open_model(ModelOptions(clip_skip=1)).options.clip_skip == 1


def test_another_precision_is_loaded_anew(host: StandaloneHost, loaded: list[str]) -> None:
    assert host.open_model(ModelOptions("fp32")).dtype == torch.float32
    assert host.open_model(ModelOptions("bf16")).dtype == torch.bfloat16
    assert loaded == ["fp32", "bf16"]


def test_a_model_that_cannot_be_read_is_tried_again(tmp_path: Path) -> None:
    host = StandaloneHost(str(tmp_path / "no.safetensors"), "cpu")
    for _ in range(2):
        with pytest.raises(ModelError, match="There is no model"):
            host.open_model()


def test_two_who_ask_at_the_same_time_get_one_model(host: StandaloneHost, loaded: list[str]) -> None:
    models = []
    threads = [threading.Thread(target=lambda: models.append(host.open_model())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(models) == 3
    assert len(set(map(id, models))) == len(loaded) == 1


def test_only_one_has_its_turn(host: StandaloneHost) -> None:
    entered, go_on, order = threading.Event(), threading.Event(), []

    def first() -> None:
        with host.lock() as lease:
            assert not lease.interrupted()
            entered.set()
            assert go_on.wait(60)
            order.append("first")

    def second() -> None:
        with host.lock():
            order.append("second")

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert entered.wait(60)
    threads[1].start()
    threads[1].join(0.2)
    assert order == []
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert order == ["first", "second"]


def test_a_turn_ends_also_with_an_error_and_leaves_random_numbers_as_they_were(host: StandaloneHost) -> None:
    def disturb() -> None:
        with host.lock():
            torch.manual_seed(1)
            torch.randn(5)
            raise ZeroDivisionError

    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError):
        disturb()
    assert torch.equal(torch.get_rng_state(), before)
    with host.lock():  # it is free again
        pass


def test_it_draws_with_the_words_given(host: StandaloneHost) -> None:
    model = host.open_model()
    drawing = GenerationRequest("a photo of thing", steps=2)
    first, again, other = (
        host.generate(model, drawing, {"thing": {"clip_l": torch.full((1, 64), value)}}).tobytes()
        for value in (0.1, 0.1, 0.5)
    )
    assert first == again != other


def test_without_a_list_of_folders_every_one_may_be_read(host: StandaloneHost, tmp_path: Path) -> None:
    host.check_folder(tmp_path)
    host.check_folder(Path("/"))


def test_folders_outside_those_of_the_list_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed, also, secret = (tmp_path / name for name in ("images", "more", "images-secret"))
    for folder in (allowed / "cats", also, secret):
        folder.mkdir(parents=True)
    host = StandaloneHost(folders=[allowed, also])
    monkeypatch.chdir(tmp_path)
    for folder in (allowed, allowed / "cats", also, Path("images/cats"), allowed / "not yet", also / ".." / "images"):
        host.check_folder(folder)
    for folder in (tmp_path, secret, allowed / "..", allowed / ".." / "images-secret", Path("images-secret"), Path("/")):
        with pytest.raises(ConfigError, match="not among the folders that this page may read"):
            host.check_folder(folder)
    for nothing in ({"folders": []}, {"folders": ()}, {"is_public": True}):
        with pytest.raises(ConfigError):
            StandaloneHost(**nothing).check_folder(allowed)


def test_a_page_is_public_only_if_it_was_made_so(tmp_path: Path) -> None:
    assert not StandaloneHost(folders=[tmp_path]).is_public
    assert StandaloneHost(folders=[tmp_path]).fixed == frozenset()
    assert StandaloneHost(is_public=True).fixed == {"filename_word_regex"}


def test_links_count_as_where_they_lead(tmp_path: Path) -> None:
    allowed, secret = tmp_path / "images", tmp_path / "secret"
    allowed.mkdir()
    secret.mkdir()
    try:
        (allowed / "way out").symlink_to(secret, target_is_directory=True)
        (tmp_path / "way in").symlink_to(allowed, target_is_directory=True)
    except OSError:
        pytest.skip("no links here")
    host = StandaloneHost(folders=[allowed])
    host.check_folder(tmp_path / "way in")
    with pytest.raises(ConfigError):
        host.check_folder(allowed / "way out")
    StandaloneHost(folders=[tmp_path / "way in"]).check_folder(allowed)
