"""The cheap route: whether there is news, and how far a run is. Pages call gradio only when there is something to show."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("gradio")  # the page is all that needs it

import gradio as gr
from browser import launch
from fakes import TinyHost
from starlette.applications import Starlette
from starlette.testclient import TestClient
from test_api import calls
from test_page import Served, served, status, until  # noqa: F401, the fixture

from ti_trainer.runs.job import Job, Snapshot
from ti_trainer.ui import status as status_module
from ti_trainer.ui.gradio_compat import MAJOR, blocks, light_queue, light_sessions, light_updates, listen
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import train_progress
from ti_trainer.ui.status import StatusCache

if MAJOR >= 6:
    from gradio.state_holder import SessionState

pytestmark = pytest.mark.page


def test_the_status_is_computed_a_few_times_a_second_however_many_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    monkeypatch.setattr(status_module, "parts_of", lambda page, now: made.append(now) or train_progress.parts_of(page, now))
    now_s = [0.0]
    monkeypatch.setattr(status_module, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    job = Job()
    cache = StatusCache(Page(TinyHost(tmp_path), job))
    first = cache.status()
    for hundredth in range(60):
        now_s[0] = hundredth / 100
        cache.status()
    assert len(made) == 3
    assert cache.status()["version"] == first["version"]
    job.update(status="loading", loaded=(1, 2))
    now_s[0] += status_module.MAX_AGE_S + 0.05
    assert cache.status()["version"] != first["version"]
    assert cache.status()["status"] == "loading"
    assert set(cache.version()) == {"version", "every"}, "what strangers are told"


def test_steps_change_what_the_route_sends_and_nothing_that_needs_gradio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_module, "MAX_AGE_S", -1.0)
    job = Job(
        Snapshot("training", "x-word", step=4, max_steps=100, loss=((1, 0.1), (2, 0.2)), rates=((1, 0.005), (2, 0.005)))
    )
    cache = StatusCache(Page(TinyHost(tmp_path), job))
    first = cache.status("")
    assert set(first["html"]) == train_progress.LIVE
    assert "4 / 100" in first["html"]["bar"]
    assert first["curve"]["svg"].startswith("<svg")
    again = cache.status(first["at"])
    assert (again["html"], again["curve"], again["at"]) == ({}, {}, first["at"])
    job.update(step=5, loss=((1, 0.1), (2, 0.2), (3, 0.15)), rates=((1, 0.005),) * 3, prompt="a <b>")
    later = cache.status(first["at"])
    assert set(later["html"]) == {"bar", "prompt"}
    assert set(later["curve"]) == {"more"}
    assert later["version"].split("-")[0] == first["version"].split("-")[0]
    assert later["version"] != first["version"], "for pages that are sent nothing else"
    assert set(cache.status("of another server-9-9.9")["html"]) == train_progress.LIVE
    assert "html" not in cache.status()
    job.update(status="done")
    assert cache.status(later["at"])["version"].split("-")[0] != first["version"].split("-")[0]


def test_clients_without_the_password_are_told_the_version_only(tmp_path: Path) -> None:
    cache = StatusCache(Page(TinyHost(tmp_path), Job()))
    answers = [
        TestClient(
            Starlette(routes=[status_module.route(cache, lambda request: request.headers.get("x-user") == "me")])
        ).get(f"{status_module.ROUTE}?since=", headers={"x-user": user})
        for user in ("me", "you")
    ]
    assert "html" in answers[0].json()
    assert set(answers[1].json()) == {"version", "every"}


@pytest.mark.parametrize(("pages", "every"), [(1, 1), (4, 1), (8, 2), (20, 5), (100, 10)])
def test_many_pages_are_told_to_ask_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pages: int, every: float
) -> None:
    monkeypatch.setattr(status_module, "parts_of", lambda page, now: {})
    now_s = [0.0]
    monkeypatch.setattr(status_module, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    cache, due = StatusCache(Page(TinyHost(tmp_path), Job())), {number: number / pages for number in range(pages)}
    while now_s[0] < 120:
        number = min(due, key=due.__getitem__)
        now_s[0] = due[number]
        due[number] += cache.version()["every"]
    assert cache.version()["every"] == pytest.approx(every, rel=0.3)


def test_an_updated_page_has_the_version_of_the_route(tmp_path: Path) -> None:
    job = Job()
    page, wanted = Page(TinyHost(tmp_path), job), ["bar", "previews", "stop"]
    told = train_progress.refresh(page, "", wanted)[0]
    assert json.loads(told)["version"] == StatusCache(page).status()["version"]
    assert told.endswith(f'"version": "{StatusCache(page).status()["version"]}"}}'), "where the script looks for it"
    job.update(status="done")
    again = train_progress.refresh(page, told, wanted)[0]
    assert json.loads(again)["version"] != StatusCache(page).status()["version"], "the last previews are sent twice"
    last = train_progress.refresh(page, again, wanted)[0]
    assert json.loads(last)["version"] == StatusCache(page).status()["version"]


def test_an_idle_page_asks_the_route_and_leaves_gradio_alone_until_there_is_news(served: Served) -> None:  # noqa: F811
    with launch() as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(urlsplit(request.url).path))
        page.clock.install()
        served.open(page, "Train")
        asked.clear()
        page.clock.fast_forward(5_000)
        until(lambda: page.wait_for_timeout(50) or asked.count(status_module.ROUTE) == 1)
        asked.clear()
        for count in range(3):
            page.clock.fast_forward(2_000)  # and on a busy machine some time goes by besides
            page.wait_for_timeout(300)
            assert asked.count(status_module.ROUTE) == count, "every five seconds"
            page.clock.fast_forward(3_000)
            until(lambda: page.wait_for_timeout(50) or asked.count(status_module.ROUTE) == count + 1)  # noqa: B023
        assert set(asked) <= {status_module.ROUTE, "/gradio_api/heartbeat"}, "and nothing else"
        calls(served.url)("train", "x-word", str(served.images), json.dumps({"max_steps": 30, "preview_every": 0}))
        until(lambda: status(page) == "done")


def test_the_route_says_what_the_api_says(served: Served) -> None:  # noqa: F811
    connection = http.client.HTTPConnection(urlsplit(served.url).netloc, timeout=120)
    connection.request("GET", status_module.ROUTE)
    told = json.loads(connection.getresponse().read())
    assert told.pop("version")
    assert told.pop("every") >= 1
    assert told == calls(served.url)("status")


@pytest.mark.gradio
@pytest.mark.skipif(MAJOR < 6, reason="older ones keep no such copies")
def test_a_session_keeps_no_copy_of_the_page_and_still_knows_its_own() -> None:
    with blocks("x") as made:
        choice, kept = gr.Dropdown(["a"]), gr.State([1])
        listen(choice.change, lambda: None, [choice], [kept])
    heavy = SessionState(made)
    light_sessions(made)
    light = SessionState(made)
    assert any(heavy.config_values.values()), "what this is about: gradio may have changed"
    assert not any(light.config_values.values())
    other = SessionState(made)
    light[kept._id].append(2)
    light[choice._id] = gr.Dropdown(["b"], render=False)
    light._update_value_in_config(choice._id, "b")
    assert (light[kept._id], other[kept._id]) == ([1, 2], [1])
    assert other[choice._id].choices == [("a", "a")]
    assert made.get_config_file()["components"], "what a page is sent is whole"


@pytest.mark.skipif(MAJOR < 6, reason="older ones look 20 times a second")
def test_an_idle_server_does_not_look_for_queued_events_all_the_time() -> None:
    with blocks("x") as made:
        gr.Button("x")
    assert made._queue.sleep_when_free < 0.05, "what this is about: gradio may have changed"
    light_queue(made)
    assert made._queue.sleep_when_free == 0.05


@pytest.mark.skipif(MAJOR < 6, reason="older ones make only what is updated")
def test_only_updated_outputs_are_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    with blocks("x") as made:
        buttons = [gr.Button(str(number)) for number in range(6)]
        asked = gr.Button("ask")
        listen(asked.click, lambda: [gr.update(value="new"), *(gr.update() for _ in range(5))], [], buttons)
    function = next(iter(made.fns.values()))

    def answered() -> list[object]:
        return _run(made.postprocess_data(function, function.fn(), SessionState(made)))

    complete = answered()
    light_updates(made)
    changed: list[str] = []
    monkeypatch.setattr(gr.Button, "postprocess", lambda self, value: changed.append(value) or value)
    light = answered()
    assert light == complete
    assert changed == ["Run", "new"], "one button, with its first value and the new one"
    assert light[1:] == [gr.update()] * 5


def _run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Its result; in a thread, since Playwright's event loop of an earlier test may still run in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()
