"""The tab in WebUIs that are unknown, or lack what our host needs: a message in its place, and never an error."""

from __future__ import annotations

import logging
import runpy
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("gradio")

from ti_trainer.errors import ModelError, TITrainerError
from ti_trainer.hosts import detection

SCRIPT = Path(__file__).parents[3] / "scripts" / "ti_trainer_tab.py"
LABEL, TAB_ID = "Textual Inversion", "ti_trainer"
OURS = "ti_trainer.hosts.webui."
A1111 = {"modules.sd_hijack", "modules.lowvram", "modules.sd_models"}
PACKAGES = {  # some modules of the real ones
    "AUTOMATIC1111's WebUI": A1111,
    "Forge": {*A1111, "modules_forge", "backend"},
    "Forge (ersatzForge, Neo)": {"modules.sd_models", "modules_forge", "backend"},
    "reForge or Forge Classic": {*A1111, "modules_forge", "ldm_patched"},
    "reForge or Forge Classic (Classic)": {"modules.sd_hijack", "modules.sd_models", "modules_forge", "ldm_patched"},
    "SD.Next": {"modules.sd_hijack", "modules.sd_models", "modules.processing_diffusers"},
    "an unknown WebUI": {"modules.sd_models"},
}


class Log(logging.Handler):
    """Keeps the records of one logger, wherever they are shown."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture(autouse=True)
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    """What is logged about the host; each message is logged once per process, so the test starts afresh."""
    detection._log_once.cache_clear()
    ours, kept = logging.getLogger("ti_trainer"), Log()
    monkeypatch.setattr(ours, "handlers", [*ours.handlers])  # in a WebUI it gets one, and the root logger no records
    monkeypatch.setattr(ours, "propagate", False)
    monkeypatch.setattr(detection.log, "handlers", [kept])
    yield kept
    for name in [each for each in logging.root.manager.loggerDict if each.startswith("ti_trainer.runs")]:
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.fixture
def webui(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., dict[str, Callable[..., Any]]]]:
    """Runs our script in a WebUI of these modules, and returns the callbacks that it registers."""

    def start(**modules: Any) -> dict[str, Callable[..., Any]]:
        callbacks: dict[str, Callable[..., Any]] = {}
        names = ("after_component", "ui_settings", "ui_tabs", "app_started")
        register = {f"on_{name}": lambda function, name=name: callbacks.update({name: function}) for name in names}
        modules = {"shared": SimpleNamespace(), "script_callbacks": SimpleNamespace(**register), **modules}
        package = ModuleType("modules")
        monkeypatch.setitem(sys.modules, "modules", package)
        for name, each in modules.items():
            monkeypatch.setitem(sys.modules, f"modules.{name}", each)
            setattr(package, name, each)
        runpy.run_path(str(SCRIPT))
        return callbacks

    def forget() -> None:
        for name in [each for each in sys.modules if each.startswith(OURS)]:
            del sys.modules[name]

    forget()
    yield start
    forget()


def message_in(tabs: list[tuple[Any, str, str]]) -> str:
    """The text of a tab that is only a message."""
    ((page, label, tab_id),) = tabs
    assert (label, tab_id) == (LABEL, TAB_ID)
    (text,) = [each.value for each in page.blocks.values() if getattr(each, "elem_id", "") == "ti_trainer_unavailable"]
    return str(text)


def is_program(monkeypatch: pytest.MonkeyPatch, name: str, host: str = "") -> None:
    monkeypatch.setattr(detection, "detect", lambda: detection.Program(name, (), host))


@pytest.mark.parametrize("name", PACKAGES)
def test_a_webui_is_recognised_by_its_packages(name: str) -> None:
    assert detection.detect(PACKAGES[name].__contains__).name == name.partition(" (")[0]


def test_what_can_be_found_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "zz_host").mkdir()
    (tmp_path / "zz_host" / "broken.py").write_text("raise RuntimeError", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    found = detection.Program("found", ("zz_host", "zz_host.broken"))
    assert detection.detect(programs=[detection.Program("missing", ("zz_host.none", "zz_none.none")), found]) is found


@pytest.mark.parametrize("name", ["SD.Next", "an unknown WebUI"])
def test_an_unsupported_webui_gets_one_message(name: str, webui: Any, monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    is_program(monkeypatch, name)
    callbacks = webui()
    callbacks["ui_settings"]()
    for _ in range(2):  # the second time for Reload UI
        text = message_in(callbacks["ui_tabs"]())
    assert f"This host is not supported yet: found {name}, expected" in text
    assert "without a WebUI" in text
    callbacks["app_started"](None, None)  # adds no route
    assert [name in each.getMessage() for each in log.records] == [True]


def test_a_module_that_the_webui_lacks_is_named(webui: Any, monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    is_program(monkeypatch, "Forge", detection.WEBUI_HOST)
    callbacks = webui(devices=SimpleNamespace(), extra_networks=SimpleNamespace())
    text = message_in(callbacks["ui_tabs"]())
    assert "This version of Forge is not supported yet (ImportError: cannot import name" in text
    (record,) = log.records
    assert "host.py:" in record.getMessage()
    assert record.exc_info is None


def test_an_error_while_the_page_is_built_becomes_a_message(
    webui: Any, monkeypatch: pytest.MonkeyPatch, log: Log, tmp_path: Path
) -> None:
    import gradio as gr

    def build(page: Any) -> None:
        with gr.Blocks(), gr.Column():
            message = "no such <b>event</b>"
            raise ValueError(message)

    is_program(monkeypatch, "Forge", detection.WEBUI_HOST)
    monkeypatch.setattr("ti_trainer.ui.layout.build", build)
    monkeypatch.setattr(detection, "find_host", lambda: SimpleNamespace(log_dir=tmp_path))
    callbacks = webui(ui_extra_networks=SimpleNamespace())
    text = message_in(callbacks["ui_tabs"]())
    assert "An error occurred in Forge: ValueError: no such &lt;b&gt;event" in text
    assert len(log.records) == 1
    with gr.Blocks() as later:
        gr.HTML("the WebUI's next tab")
    assert len(later.children) == 1, "gradio is where it was"


def test_the_route_tells_visitors_without_the_password_little(
    webui: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import gradio as gr
    from fakes import TinyHost
    from starlette.testclient import TestClient

    if int(gr.__version__.partition(".")[0]) >= 6:
        pytest.skip("no WebUI has it")
    with gr.Blocks(analytics_enabled=False) as demo:
        gr.HTML("the page")
    is_program(monkeypatch, "AUTOMATIC1111's WebUI", detection.WEBUI_HOST)
    monkeypatch.setattr("ti_trainer.ui.layout.build", lambda page: demo)
    monkeypatch.setattr(detection, "find_host", lambda: TinyHost(tmp_path))
    callbacks = webui(ui_extra_networks=SimpleNamespace())
    callbacks["ui_tabs"]()
    for auth in (None, ("me", "secret")):
        app, *_ = demo.launch(auth=auth, prevent_thread_lock=True, quiet=True)
        callbacks["app_started"](None, app)
        client, address = TestClient(app), "/ti_trainer/status?since="
        told = client.get(address).json()
        assert ("html" in told) is (auth is None)
        assert auth is None or set(told) == {"version", "every"}
        if auth:
            client.post("/login", data={"username": auth[0], "password": auth[1]})
            assert "html" in client.get(address).json()
        demo.close()


class Host:
    """Its model cannot be described; `error` is what the WebUI raises."""

    error: Exception = AttributeError("'Engine' object has no attribute 'clip'")

    @detection.reports_failures
    def describe(self) -> str:
        raise self.error


def test_the_poll_shows_an_unexpected_error_and_logs_it_once(tmp_path: Path, log: Log) -> None:
    from fakes import TinyHost

    from ti_trainer.runs.job import Job
    from ti_trainer.ui.page import Page
    from ti_trainer.ui.panels import train_progress

    class PolledHost(Host, TinyHost):
        pass

    page = Page(PolledHost(tmp_path), Job())
    for _ in range(5):
        _, text = train_progress.refresh(page, "", ["model"])
        assert "is not supported yet (AttributeError: &#x27;Engine&#x27; object has no attribute" in text
    (record,) = log.records
    assert "test_webui_tab.py:" in record.getMessage()
    assert record.exc_info is None


def test_errors_for_users_stay_as_they_are(log: Log) -> None:
    host = Host()
    host.error = ModelError("A checkpoint is being loaded.")
    with pytest.raises(ModelError, match=r"^A checkpoint is being loaded\.$"):
        host.describe()
    assert not log.records


def test_any_other_error_is_no_matter_of_versions() -> None:
    host = Host()
    host.error = OSError("disk\nfull")
    with pytest.raises(TITrainerError, match=r"^An error occurred in .*: OSError: disk full\. The console") as raised:
        host.describe()
    assert "raise self.error" in "".join(traceback.format_exception(raised.value.__cause__))
