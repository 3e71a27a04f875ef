"""Serve the page without the WebUI, with its own stylesheet and scripts and nothing from other sites."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import tempfile
import webbrowser
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import FileResponse

from ti_trainer.errors import ConfigError
from ti_trainer.files import upload_folders
from ti_trainer.resources import RESOURCES
from ti_trainer.ui.gradio_compat import (
    MAJOR,
    light_calls,
    light_queue,
    light_sessions,
    light_updates,
    refuse_missing_values,
    theme,
)
from ti_trainer.ui.guard import Guard
from ti_trainer.ui.status import StatusCache, route

PORTS = range(7860, 7960)
IN_USE = (errno.EADDRINUSE, errno.EACCES)  # EACCES: Windows reserves ranges of ports
LANGUAGES = {"ja": "ja_JP", "zh-cn": "zh_CN", "zh-tw": "zh_TW"}  # the WebUI's names of their files in localizations/
LOCALIZATIONS = "/ti_trainer/localizations"  # also in javascript/ti_trainer_language.js
KEPT_S = 15  # connections of pages that ask every ten seconds or more often
MOST_BYTES = 200 * 2**20  # of one uploaded file
OWN_STYLE = """
footer { display: none !important; }
/* hidden would keep the status strip from sticking */
.gradio-container { overflow: visible !important; overflow-x: clip !important; }
"""


def serve(
    blocks: gr.Blocks,
    *,
    address: str = "127.0.0.1",
    port: int | None = None,
    allow_hosts: Collection[str] = (),
    status: StatusCache | None = None,
    language: str = "auto",
    open_browser: bool = False,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until Ctrl-C. `ready` is called with the URL. ConfigError if the address or the port is not available.

    Requests of other websites are refused; `allow_hosts` are further host names of the page (see `guard`). `status`
    answers the route of `status.py`. The language is "en", one of LANGUAGES, or "auto" for the browser's.
    """
    with _listen(address, port) as listener:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104  # only compared with
        url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}/"
        page = Compressed(_mounted(blocks, status, language))
        app = Guard(page, address, allow_hosts, upload_folders()[-1])
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, timeout_keep_alive=KEPT_S)
        if ready:
            ready(url)
        if open_browser:
            webbrowser.open(url)
        server = uvicorn.Server(config)
        # Shutting down cuts off the event streams of open pages, which uvicorn would log as errors.
        logging.getLogger("uvicorn.error").addFilter(lambda _: not server.should_exit)
        with contextlib.suppress(KeyboardInterrupt):  # newer versions of uvicorn raise it again after shutting down
            server.run(sockets=[listener])


class Compressed:
    """ASGI middleware that compresses the page, of 1 MB, and its configuration; gradio compresses its scripts only."""

    def __init__(self, app: Any) -> None:
        self.app, self.compressing = app, GZipMiddleware(app, compresslevel=5)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request; streams of events are not touched."""
        is_page = scope["type"] == "http" and scope["path"] in ("/", "/config")
        await (self.compressing if is_page else self.app)(scope, receive, send)


@contextlib.contextmanager
def own_images() -> Iterator[None]:
    """Make gradio keep the images it shows in a folder of this process, deleted at the end. Build the page inside."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    with tempfile.TemporaryDirectory(prefix="ti-trainer-", dir=before, ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield
        finally:
            os.environ.pop("GRADIO_TEMP_DIR")
            if before is not None:
                os.environ["GRADIO_TEMP_DIR"] = before


def _listen(address: str, port: int | None) -> socket.socket:
    """A socket that already listens: early requests wait for the server, and no other program can take the port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for each in PORTS if port is None else (port,):
        try:
            return socket.create_server((address, each), family=family)
        except OSError as error:  # noqa: PERF203  # a hundred times at most
            if error.errno not in IN_USE:
                message = f"Cannot listen on the address {address} ({error.strerror}); try 127.0.0.1."
                raise ConfigError(message) from error
    found = f"Ports {PORTS.start} to {PORTS.stop - 1} are" if port is None else f"Port {port} is"
    message = f"{found} already in use: choose another port, or close the program that uses it."
    raise ConfigError(message)


def _answering(path: Path) -> Callable[[], Any]:
    """A route of this JSON file; without annotations, which FastAPI would look up in the wrong module."""
    return lambda: FileResponse(path, media_type="application/json", headers={"Cache-Control": "no-cache"})


def _mounted(blocks: gr.Blocks, status: StatusCache | None, language: str) -> FastAPI:
    """The page as an ASGI app with style.css and javascript/, which the WebUI would add by itself."""
    style = (RESOURCES / "style.css").read_text(encoding="utf-8") + OWN_STYLE
    script = f"window.tiTrainerLanguage = {json.dumps(language)};\n" + "\n".join(
        path.read_text(encoding="utf-8") for path in sorted((RESOURCES / "javascript").glob("*.js"))
    )
    app = FastAPI(openapi_url=None)
    if status:
        app.router.routes.append(route(status))
    for path in (RESOURCES / "localizations" / f"{name}.json" for name in LANGUAGES.values()):
        app.add_api_route(f"{LOCALIZATIONS}/{path.name}", _answering(path), methods=["GET"])
    light_sessions(blocks)
    light_updates(blocks)
    light_calls()
    light_queue(blocks)
    refuse_missing_values(blocks)
    if MAJOR >= 6:
        head = f"<style>{style}</style><script>{script}</script>"
        return gr.mount_gradio_app(
            app, blocks, "/", head=head, theme=theme(), footer_links=[], run_history=False, max_file_size=MOST_BYTES
        )
    blocks.css = style
    with blocks:
        if MAJOR == 3:
            blocks.load(None, _js=f"() => {{ {script} }}")
        else:
            blocks.load(None, js=f"() => {{ {script} }}")
    return gr.mount_gradio_app(app, blocks.queue(), "/")
