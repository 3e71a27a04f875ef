"""The WebUI started in other ways: with little memory, with a login, for everyone on the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
import server
from export import export
from server import Server
from test_extension import DEMO, ENDPOINTS, HOSTS_OWN, our_status, started, stopped, until
from test_host_alone import generate

from ti_trainer.hosts.diffusers.model import DiffusersModel

pytestmark = pytest.mark.webui
FORGES = ("Forge", "reForge")  # which remove these options from their command line
Start = Callable[..., AbstractContextManager[Server]]


@pytest.fixture
def start(request: pytest.FixtureRequest, tmp_path: Path, embedded_model: DiffusersModel) -> Start:
    """Starts one with more options, and stops it."""
    checkout: Path | None = request.config.getoption("--webui")
    if checkout is None:
        pytest.skip("needs a checkout of the WebUI: pytest --webui=DIR")
    python = request.config.getoption("--webui-python") or checkout / "venv" / "bin" / "python"
    export(embedded_model, checkout, tmp_path / "models" / "Stable-diffusion" / "embedded.safetensors")
    server.install_extension(tmp_path, checkout.resolve(), python.absolute())

    @contextmanager
    def starting(*options: str) -> Iterator[Server]:
        with server.running(checkout.resolve(), python.absolute(), tmp_path, options) as running:
            yield running

    return starting


@pytest.mark.not_in(*FORGES, reason="they have no --medvram")
def test_with_medvram_we_train_and_the_host_draws_as_before_and_its_console_has_no_bars(start: Start) -> None:
    with start("--medvram", "--disable-console-progressbars") as webui:
        before = generate(webui, HOSTS_OWN)
        started(webui, "my-medvram", preview_every=20)
        until(lambda: our_status(webui)["step"] > 45)
        assert stopped(webui)["status"] == "stopped"
        webui.wait_for("TI Trainer: Training my-medvram: stopped after step")
        assert "step/s" not in webui.printed()
        assert np.array_equal(before, generate(webui, HOSTS_OWN))


@pytest.mark.not_in(*FORGES, reason="they have no --lowvram")
def test_with_lowvram_it_says_so_before_anything_starts(start: Start) -> None:
    with start("--lowvram") as webui:
        with pytest.raises(RuntimeError, match="With --lowvram"):
            webui.endpoint("ti_trainer_create", "my-lowvram", "red star", 2, False)
        assert our_status(webui)["status"] == "idle"
        assert generate(webui, HOSTS_OWN).shape == (64, 64, 3)


def test_nothing_of_ours_answers_without_the_login(start: Start) -> None:
    with start("--gradio-auth=someone:secret") as webui:
        for name in ENDPOINTS:
            with pytest.raises(RuntimeError, match="401"):
                webui.endpoint(f"ti_trainer_{name}")


def test_visitors_from_the_network_name_only_folders_that_the_host_shows(start: Start) -> None:
    with start("--listen") as webui:
        webui.endpoint("ti_trainer_create", "my-listen", "red star", 2, False)
        with pytest.raises(RuntimeError, match="outside the folders that this WebUI shows"):
            webui.endpoint("ti_trainer_train", "my-listen", str(DEMO), "{}")
