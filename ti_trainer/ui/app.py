"""Serve the page without the WebUI: a port, our style and scripts, nothing from or for elsewhere. Knows no panels."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import tempfile
import webbrowser
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from ti_trainer.errors import ConfigError
from ti_trainer.files import upload_folders
from ti_trainer.resources import RESOURCES
from ti_trainer.ui.board import ROUTE
from ti_trainer.ui.gradio_compat import MAJOR, light_sessions, refuse_missing_values, theme
from ti_trainer.ui.guard import Guard

PORTS = range(7860, 7960)
TAKEN = (errno.EADDRINUSE, errno.EACCES)  # the second: Windows keeps ranges of ports for itself
FOOTER = "footer { display: none !important; }"


def serve(
    blocks: gr.Blocks,
    *,
    address: str = "127.0.0.1",
    port: int | None = None,
    allow_hosts: Collection[str] = (),
    status: Callable[[], Mapping[str, Any]] | None = None,
    open_browser: bool = False,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until Ctrl-C. `ready` is told the address to open. ConfigError if the port or the address cannot be had.

    Other web sites are kept out; `allow_hosts` are names that the page has besides its address: see `guard`. `status` is
    what the route of `board` answers.
    """
    with _listen(address, port) as listener:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104  # only compared with
        url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}/"
        app = Guard(_mounted(blocks, status), address, allow_hosts, upload_folders()[-1])
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        if ready:
            ready(url)
        if open_browser:
            webbrowser.open(url)
        server = uvicorn.Server(config)
        # A stream that an open page listens to is cut off at the end: uvicorn would log that as an error.
        logging.getLogger("uvicorn.error").addFilter(lambda _: not server.should_exit)
        with contextlib.suppress(KeyboardInterrupt):  # newer versions of uvicorn raise it again when they have ended
            server.run(sockets=[listener])


@contextlib.contextmanager
def own_images() -> Iterator[None]:
    """Have gradio keep what it shows in a folder of this process, gone at the end. Build the page within."""
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
    """A socket that listens already: what asks before the server runs waits, and nobody can take the port meanwhile."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for each in PORTS if port is None else (port,):
        try:
            return socket.create_server((address, each), family=family)
        except OSError as error:  # noqa: PERF203  # a hundred times at most
            if error.errno not in TAKEN:
                message = f"Address {address}: found that this machine cannot serve there ({error.strerror}); try 127.0.0.1."
                raise ConfigError(message) from error
    found = f"ports {PORTS.start} to {PORTS.stop - 1}" if port is None else f"port {port}"
    message = f"Page: found {found} taken, expected a free one. Choose another, or end the program that uses it."
    raise ConfigError(message)


def _mounted(blocks: gr.Blocks, status: Callable[[], Mapping[str, Any]] | None) -> FastAPI:
    """The page as an app. The WebUI adds style.css and javascript/ by itself, so this is done only here."""
    style = (RESOURCES / "style.css").read_text(encoding="utf-8") + FOOTER
    script = "\n".join(path.read_text(encoding="utf-8") for path in sorted((RESOURCES / "javascript").glob("*.js")))
    app = FastAPI(openapi_url=None)
    if status:
        app.add_api_route(ROUTE, lambda: JSONResponse(status()), methods=["GET"])
    light_sessions(blocks)
    refuse_missing_values(blocks)
    if MAJOR >= 6:
        head = f"<style>{style}</style><script>{script}</script>"
        return gr.mount_gradio_app(app, blocks, "/", head=head, theme=theme(), footer_links=[], run_history=False)
    blocks.css = style
    with blocks:
        if MAJOR == 3:
            blocks.load(None, _js=f"() => {{ {script} }}")
        else:
            blocks.load(None, js=f"() => {{ {script} }}")
    return gr.mount_gradio_app(app, blocks.queue(), "/")
