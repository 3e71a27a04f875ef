"""Other websites are kept out of the page: by name, by sender, by route; and in Chromium, as an attack would be made."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

pytest.importorskip("gradio")  # the page is all that needs it

from browser import launch
from test_page import Served, served  # noqa: F401, the fixture

from ti_trainer.ui import gradio_compat
from ti_trainer.ui.guard import Guard, checked_allowed

PREFIX = "/gradio_api" if gradio_compat.MAJOR >= 5 else ""
OURS = {"host": "127.0.0.1:7860"}
FOREIGN = ("http://evil.test", "https://evil.test:7860", "null", "http://127.0.0.1", "http://127.0.0.1:9999", "file://", "x")


def status(
    guard: Guard, path: str = "/", method: str = "GET", *more: tuple[str, str], kind: str = "http", **given: str
) -> int:
    """The status of an answer to a request with these headers; 200 from the app itself."""
    headers = [(name.replace("_", "-"), value) for name, value in {**OURS, **given}.items()] + list(more)
    scope = {
        "type": kind,
        "scheme": "http" if kind == "http" else "ws",
        "method": method,
        "path": path,
        "headers": [(name.encode(), value.encode()) for name, value in headers if value],
    }
    if kind == "websocket":
        del scope["method"]
    sent: list[dict] = []

    async def send(message: dict) -> None:
        sent.append(message)

    with ThreadPoolExecutor() as thread:  # a browser that is open keeps an event loop in this one
        thread.submit(asyncio.run, guard(scope, None, send)).result()
    return sent[0].get("status", sent[0].get("code"))


def guard(tmp_path: Path, address: str = "127.0.0.1", *allowed: str) -> Guard:
    async def app(_scope: dict, _receive: object, send: object) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    return Guard(app, address, allowed, tmp_path / "images")


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:7860", "localhost.:7860", "127.0.0.1", "127.0.0.1:1", "[::1]:7860", "[0:0:0:0:0:0:0:1]:7860"],
)
def test_the_page_answers_to_its_own_names(tmp_path: Path, host: str) -> None:
    assert status(guard(tmp_path), host=host) == 200
    assert status(guard(tmp_path), "/queue/join", kind="websocket", host=host, origin=f"http://{host}") == 200


@pytest.mark.parametrize(
    "host",
    [
        *(
            "evil.test",
            "evil.test:7860",
            "localhost.evil.test",
            "127.0.0.1.evil.test",
            "evil.test.",
            "",
            "x y",
            "192.168.1.7",
        ),
        *("localhost@evil.test", "localhost:7860@evil.test", "evil.test@localhost", "localhost:port", "localhost/", "[::1"),
        *("0.0.0.0:7860", "2130706433", "0x7f.1", "localhost:7860,evil.test", "ⓛocalhost"),
    ],
)
def test_it_answers_to_no_other_name(tmp_path: Path, host: str) -> None:
    for path, method in (("/", "GET"), ("/queue/join", "POST"), ("/file=x", "GET"), ("/config", "OPTIONS")):
        assert status(guard(tmp_path), path, method, host=host, origin=f"http://{host}") == 400
    assert status(guard(tmp_path), "/queue/join", kind="websocket", host=host) == 1008


def test_a_network_address_answers_to_numbers_and_to_names_that_were_allowed(tmp_path: Path) -> None:
    assert status(guard(tmp_path, "192.168.1.7"), host="192.168.1.7:7860", origin="http://192.168.1.7:7860") == 200
    everywhere = guard(tmp_path, "0.0.0.0", "Box.lan", "proxy.test:8443")  # noqa: S104
    for host in ("192.168.1.7:7860", "[fd00::7]:7860", "localhost", "0.0.0.0:7860", "box.lan:7860", "proxy.test"):
        assert status(everywhere, host=host, origin=f"http://{host}") == 200, host
    assert status(everywhere, host="evil.test:7860") == 400
    assert status(everywhere, host="127.0.0.1:7860", origin="https://box.lan") == 200, "a proxy that changes the Host"
    assert status(everywhere, host="127.0.0.1:7860", origin="https://proxy.test:8443") == 200
    assert status(everywhere, host="127.0.0.1:7860", origin="https://proxy.test") == 403
    for port in (80, 443):
        usual = guard(tmp_path, "127.0.0.1", f"proxy.test:{port}")
        for origin in ("https://proxy.test", "https://proxy.test:443", "http://proxy.test"):
            assert status(usual, host="127.0.0.1:7860", origin=origin) == 200
        assert status(usual, host="127.0.0.1:7860", origin="https://proxy.test:8443") == 403
    for wrong in ("", "a b", "http://box.lan", "box.lan/x", "me@box.lan", "box.lan:port"):
        with pytest.raises(ValueError, match="expected a name"):
            checked_allowed(wrong)
    for wrong, said in (
        ("*", "wildcards are not supported"),
        ("*.lan", "wildcards are not supported"),
        (".lan", "wildcards are not supported"),
        (".", "expected a name"),
    ):
        with pytest.raises(ValueError, match=said):
            checked_allowed(wrong)
    for wrong in ("-", "a,b", "a..b", "a-.lan", "x" * 300, "a\n"):
        with pytest.raises(ValueError, match="expected a name"):
            checked_allowed(wrong)
    with pytest.raises(ValueError, match=r"xn--bcher-kva\.lan"):
        checked_allowed("bücher.lan")
    for right in ("xn--bcher-kva.lan", "My_PC", "box.lan.:8080", "[fd00::7]:80", "10.0.0.7", "localhost"):
        assert checked_allowed(right) == right


@pytest.mark.parametrize("origin", FOREIGN)
def test_what_another_site_sends_is_refused(tmp_path: Path, origin: str) -> None:
    mine = guard(tmp_path)
    for path, method in (
        ("/", "GET"),
        ("/queue/join", "POST"),
        ("/run/predict", "OPTIONS"),
        ("/", "POST"),
        ("/config", "GET"),
    ):
        assert status(mine, path, method, origin=origin) == 403
    assert status(mine, "/queue/join", kind="websocket", origin=origin) == 1008
    assert status(mine, "/queue/join", "POST", origin="http://127.0.0.1:7860") == 200
    assert status(mine, "/", "GET", ("origin", origin), origin="http://127.0.0.1:7860") == 403, "twice"


def test_what_says_no_origin_is_told_by_other_headers(tmp_path: Path) -> None:
    mine = guard(tmp_path)
    assert status(mine, "/queue/join", "POST") == 200, "a script"
    assert status(mine, "/config", referer="http://127.0.0.1:7860/") == 200
    assert status(mine, "/config", referer="http://evil.test/") == 403
    assert status(mine, "/", referer="http://evil.test/") == 200, "a link to the page"
    for site in ("cross-site", "same-site"):
        assert status(mine, "/", sec_fetch_site=site, sec_fetch_mode="navigate", sec_fetch_dest="document") == 200
        assert status(mine, "/", "POST", sec_fetch_site=site, sec_fetch_mode="navigate", sec_fetch_dest="document") == 403
        assert status(mine, "/", sec_fetch_site=site, sec_fetch_mode="navigate", sec_fetch_dest="iframe") == 403
        assert status(mine, "/", sec_fetch_site=site, sec_fetch_mode="no-cors", sec_fetch_dest="image") == 403
        assert status(mine, "/config", sec_fetch_site=site, sec_fetch_mode="navigate", sec_fetch_dest="document") == 403
    for site in ("same-origin", "none"):
        assert status(mine, "/config", sec_fetch_site=site) == 200


def test_only_what_the_page_needs_is_served(tmp_path: Path) -> None:
    mine, secret = guard(tmp_path), tmp_path / "secret.png"
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "link.png").symlink_to(secret)
    assert status(mine, "/upload", "POST") == status(mine, "/gradio_api/upload_progress") == 200
    for path in (
        "/uploads",
        "/proxy=http://x",
        "/component_server",
        "/process_recording",
        "/monitoring",
        "/vibe-edit",
        "/docs",
    ):
        assert status(mine, path, "POST") == 403
        assert status(mine, f"/gradio_api{path}", "POST") == 403
    for api in ("", "/gradio_api"):
        assert status(mine, f"{api}/file={tmp_path}/images/a/b.webp") == 200
        for path in (
            secret,
            f"{tmp_path}/images/../secret.png",
            f"{tmp_path}/images/link.png",
            *(f"{tmp_path}/images/uploaded{ending}" for ending in (".html", ".svg", ".pt", "", ".png/x.js")),
            "http://x/y",
            "\0",
            f"{tmp_path}/images/a\0b",
            "x" * 9000,
            "README.md",
            "",
        ):
            assert status(mine, f"{api}/file={path}") == 403


@pytest.mark.parametrize("headers", [{"Host": "evil.test"}, {"Origin": "http://evil.test"}, {"Origin": "null"}])
def test_every_route_of_the_real_server_is_closed_to_others(served: Served, headers: dict[str, str]) -> None:  # noqa: F811
    place = urlsplit(served.url).netloc
    for path in ("/", "/config", "/theme.css", "/nowhere", *(PREFIX + each for each in ("/info", "/upload", "/queue/join"))):
        for method in ("GET", "POST", "OPTIONS", "HEAD", "PUT"):
            connection = http.client.HTTPConnection(place, timeout=120)
            connection.request(method, path, headers={"Access-Control-Request-Method": "POST", **headers})
            answer = connection.getresponse()
            assert answer.status in (400, 403), (method, path)
            assert not [name for name, _ in answer.getheaders() if name.lower().startswith("access-control-")]
            connection.close()


ATTACK = """async ([address, folder]) => {
    const done = {};
    const attempt = async (name, ...given) => {
        try { done[name] = (await fetch(...given)).status; } catch (error) { done[name] = "" + error; }
    };
    const body = new FormData();
    body.append("files", new Blob(["x"]), "judge.pt");
    const call = (api) => [address + api, { method: "POST", headers: { "Content-Type": "text/plain" },
        body: JSON.stringify({ data: ["stolen", "cat", 2, false], fn_index: null }), mode: window.attackMode }];
    await attempt("page", address + "/", { mode: window.attackMode });
    await attempt("config", address + "/config", { mode: window.attackMode });
    await attempt("upload", address + "PREFIX/upload", { method: "POST", body, mode: window.attackMode });
    await attempt("run", ...call("PREFIX/run/ti_trainer_create"));
    await attempt("call", ...call("PREFIX/call/ti_trainer_create"));
    return done;
}""".replace("PREFIX", PREFIX)


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """Another server of this computer, with a page of its own."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<title>elsewhere</title>")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


def test_a_site_that_rebinds_its_name_to_this_computer_gets_nothing(served: Served) -> None:  # noqa: F811
    port = urlsplit(served.url).port
    site = f"http://evil.test:{port}"
    with launch(hosts="MAP evil.test 127.0.0.1") as page:
        answer = page.goto(site)  # its name leads here
        assert answer.status == 400
        assert "--allow-host evil.test" in page.inner_text("body")
        page.evaluate("window.attackMode = 'cors'")  # as the site's own script would, loaded before its name led here
        done = page.evaluate(ATTACK, [site, str(served.folder)])
    assert set(done.values()) == {400}, done
    assert not list((served.folder / "embeddings").glob("stolen*"))


@pytest.mark.parametrize("mode", ["cors", "no-cors"])
def test_a_page_of_another_port_can_neither_read_nor_do_anything(served: Served, elsewhere: str, mode: str) -> None:  # noqa: F811
    with launch() as page:
        page.goto(elsewhere)
        page.evaluate("mode => { window.attackMode = mode; }", mode)
        heard: list[int] = []
        page.on("response", lambda answer: heard.append(answer.status) if answer.url.startswith(served.url) else None)
        done = page.evaluate(ATTACK, [served.url.rstrip("/"), str(served.folder)])
        assert all(each == 0 if mode == "no-cors" else "Failed to fetch" in str(each) for each in done.values()), done
        assert set(heard) <= {403}
        framed = "address => { const f = document.createElement('iframe'); f.src = address; document.body.append(f); }"
        page.evaluate(framed, served.url)
        page.wait_for_timeout(1000)
        assert all("ti_trainer" not in frame.content() for frame in page.frames)
    assert not list((served.folder / "embeddings").glob("stolen*"))
    # Nor is it the page that cannot: the same call by a script does it.
    connection = http.client.HTTPConnection(urlsplit(served.url).netloc, timeout=60)
    given = json.dumps({"data": ["allowed", "cat", 2, False]})
    connection.request("POST", f"{PREFIX}/run/ti_trainer_create", given, {"Content-Type": "application/json"})
    assert connection.getresponse().status == 200
    assert list((served.folder / "embeddings").glob("allowed*"))
