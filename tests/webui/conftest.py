"""The WebUI of `pytest --webui=DIR`, started once for all tests here, on the embedded model and with our extension."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import browser
import checking
import hosts
import pytest
import server
from export import export

from ti_trainer.tiny_model import DEMO

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from ti_trainer.hosts.diffusers.model import DiffusersModel


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "not_in(*hosts, reason): does not apply to these hosts of tests/webui/hosts.py")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A test may wait for the WebUI twice: to start, and to answer. Some do not apply to every host, and say why."""
    checkout: Path | None = config.getoption("--webui")
    for item in items:
        if item.path.parent != Path(__file__).parent:
            continue
        item.add_marker(pytest.mark.timeout(2 * config.getoption("--webui-timeout") + 60))
        for marker in item.iter_markers("not_in"):
            if checkout and hosts.kind_of(checkout).name in marker.args:
                item.add_marker(pytest.mark.skip(f"not in {hosts.kind_of(checkout).name}: {marker.kwargs['reason']}"))


@pytest.fixture(scope="session")
def checkout(request: pytest.FixtureRequest) -> Path:
    """Of the WebUI."""
    found: Path | None = request.config.getoption("--webui")
    if found is None:
        pytest.skip("needs a checkout of the WebUI: pytest --webui=DIR")
    return found


@pytest.fixture
def other_checkouts(request: pytest.FixtureRequest) -> list[Path]:
    """Of other WebUIs, each with its own Python in venv/."""
    found: list[Path] = request.config.getoption("--webui-other")
    if not found:
        pytest.skip("needs a second checkout: --webui-other=DIR")
    return found


@pytest.fixture(scope="session")
def serve(request: pytest.FixtureRequest, checkout: Path) -> Callable[..., AbstractContextManager[server.Server]]:
    """Starts one on a data folder, with our extension and with what checks numbers within it."""
    first, python = checkout, request.config.getoption("--webui-python")

    def serving(data: Path, options: Sequence[str] = (), checkout: Path = first) -> AbstractContextManager[server.Server]:
        own = python if python and checkout == first else checkout / "venv" / "bin" / "python"
        server.install_extension(data, checkout.resolve(), own.absolute())
        checking.install(data)
        timeout_s = request.config.getoption("--webui-timeout")
        return server.running(checkout.resolve(), own.absolute(), data, options, timeout_s=timeout_s)

    return serving


@pytest.fixture(scope="session")
def webui(
    checkout: Path, serve: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory, embedded_model: DiffusersModel
) -> Iterator[server.Server]:
    data = tmp_path_factory.mktemp("webui")
    export(embedded_model, checkout, data / "models" / "Stable-diffusion" / "embedded.safetensors")
    with serve(data) as running:
        yield running


@pytest.fixture
def page(webui: server.Server) -> Iterator[Page]:
    """The WebUI's page in a browser, ready to be used."""
    with browser.launch() as opened:
        opened.goto(webui.url)
        opened.locator("#txt2img_generate").wait_for()
        yield opened


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A single one of the demo, in a folder of its own."""
    folder = tmp_path / "one image"
    folder.mkdir()
    shutil.copyfile(DEMO / "01.png", folder / "01.png")
    return folder / "01.png"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Where a test failed: what the WebUI printed last, and an image of the page if there is one."""
    outcome = yield
    report, used = outcome.get_result(), getattr(item, "funcargs", {})
    running, opened = used.get("webui"), used.get("page")
    if report.failed and isinstance(running, server.Server):
        report.sections.append(("the WebUI's log", running.tail()))
        if opened is not None and not opened.is_closed():
            image = running.data / f"{item.name}.png"
            opened.screenshot(path=image, full_page=True)
            report.sections.append(("the page", str(image)))
