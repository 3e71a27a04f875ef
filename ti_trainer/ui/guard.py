"""Protect the served page from other websites that are open in the same browser.

Any site can make the browser send requests to this machine, even under one of the site's own host names (DNS rebinding).
The page therefore answers only under its own names (the Host header), only to requests of its own pages (Origin,
Sec-Fetch-Site, Referer), and only on the gradio routes that it needs; the only files it serves are images in its own folder.
Starlette's TrustedHostMiddleware covers the first part, but its message does not say what to do, and older versions do not
support IPv6.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import socket
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ti_trainer.files import is_within

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Any, Send], Awaitable[None]]

log = logging.getLogger(__name__)
NOT_FOUND = 404
LOCAL = ("localhost", "127.0.0.1", "::1")
API = "/gradio_api"  # gradio 3 and 4 have none
ROUTES = {  # the first part of a path, with or without API before it
    *("", "config", "info", "theme.css", "static", "assets", "svelte", "favicon.ico", "manifest.json", "robots.txt"),
    *("queue", "run", "api", "call", "cancel", "reset", "heartbeat", "startup-events"),
    *("app_id", "user", "token", "login_check", "custom_component", "ti_trainer"),
    *("upload", "upload_progress"),  # of images, into the folder that the program deletes at its end
}
SERVED = (".png", ".jpg", ".jpeg", ".webp", ".gif")  # an uploaded .html or .svg would be a page of ours
FILE = "file="
DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
USUAL_PORTS = set(DEFAULT_PORTS.values())  # which browsers omit
NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
NOT_FRAMED = [(b"content-security-policy", b"frame-ancestors 'self'"), (b"x-frame-options", b"SAMEORIGIN")]


class Authority(NamedTuple):
    """A host and its port; None is the scheme's default port."""

    host: str
    port: int | None


class Refused(Exception):  # noqa: N818  # it becomes a response
    """A request that is refused: the HTTP status, and a message for the user."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Guard:
    """ASGI middleware.

    `address` is the one the server listens on. On a loopback address, the loopback names are accepted; on any other, every
    numeric address, which no website can use as its own name, and this computer's names. `allowed` are further names,
    NAME or NAME:PORT, such as that of a proxy. `images` is the folder of the only files that are served.
    """

    def __init__(self, app: App, address: str, allowed: Collection[str], images: Path) -> None:
        self.app, self.images = app, images
        parsed = [authority for each in allowed if (authority := _authority(each))]
        self.allowed = {each._replace(port=None) if each.port in USUAL_PORTS else each for each in parsed}
        self.names = {*LOCAL, _normalized(address), *(each.host for each in self.allowed)}
        self.accepts_numeric = not _is_loopback(address)
        if self.accepts_numeric:
            name = socket.gethostname().lower()
            self.names |= {name, f"{name.partition('.')[0]}.local"}

    async def __call__(self, scope: Scope, receive: Any, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        try:
            self.check(scope)
        except Refused as refused:
            await _refuse(scope, send, refused)
            return

        async def sending(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *NOT_FRAMED]}
            await send(message)

        try:
            await self.app(scope, receive, sending)
        except RuntimeError as error:  # gradio starts the response before it looks for the session
            if getattr(error.__cause__, "status_code", None) != NOT_FOUND:
                raise
            log.warning("Refused: unknown session at %.200r; reload the page.", scope["path"])
            await send({"type": "http.response.body", "body": b""})

    def check(self, scope: Scope) -> None:
        """Raise Refused for a request that another site may have sent, or for a route that the page does not need."""
        headers = _headers(scope)
        host = self._requested_host(headers)
        scheme: str = {"ws": "http", "wss": "https"}.get(scope["scheme"]) or scope["scheme"]
        self._check_sender(scope, headers, host._replace(port=_non_default(scheme, host.port)), scheme)
        self._check_path(scope["path"])

    def _requested_host(self, headers: dict[str, list[str]]) -> Authority:
        """The Host header, if it is one of the page's names."""
        given = headers.get("host", [])
        host = _authority(given[0]) if len(given) == 1 else None
        if host is None:
            raise Refused(400, f"Host: found {given!r:.200}, expected one name with an optional port.")
        if host.host not in self.names and not (self.accepts_numeric and _is_numeric(host.host)):
            message = (
                f"The request used the name {host.host!r:.200}, which is not one of this page's names "
                f"({', '.join(sorted(self.names))}). If another website sent it, nothing has happened. If you gave this "
                f"computer that name yourself, start the page with --allow-host {host.host:.200}"
            )
            raise Refused(400, message)
        return host

    def _check_sender(self, scope: Scope, headers: dict[str, list[str]], host: Authority, scheme: str) -> None:
        """Accept requests of our own pages, and those without a sender: they come from the user or from a script."""
        if any(len(headers.get(each, ())) > 1 for each in ("origin", "sec-fetch-site", "referer")):
            raise Refused(403, "The request has several Origin, Sec-Fetch-Site or Referer headers, and was refused.")
        origin, site, referer = (headers.get(each, [""])[0] for each in ("origin", "sec-fetch-site", "referer"))
        if origin:
            if not self._is_ours(origin, host, scheme):
                raise Refused(403, _foreign(origin))
            return
        ours = site in ("same-origin", "none") if site else not referer or self._is_ours(referer, host, scheme)
        if not ours and not _follows_link(scope, headers):
            raise Refused(403, _foreign(referer or "another site"))

    def _is_ours(self, sender: str, host: Authority, scheme: str) -> bool:
        """Whether an origin is the one that the request went to, or an allowed one."""
        try:
            parts = urlsplit(sender)
        except ValueError:
            return False
        found = _authority(parts.netloc)
        if found is None or parts.scheme not in ("http", "https"):
            return False
        found = found._replace(port=_non_default(parts.scheme, found.port))
        return (parts.scheme == scheme and found == host) or found in self.allowed

    def _check_path(self, path: str) -> None:
        """Refuse routes that the page does not need, and files other than its images."""
        rest = path.removeprefix(API).removeprefix("/")
        if rest.startswith(FILE):
            file = rest.removeprefix(FILE)
            is_image = file.lower().endswith(SERVED) and "\0" not in file
            if not is_image or not is_within(Path(file).absolute(), self.images):
                raise Refused(403, "Only the images that this page shows are served.")
        elif rest.partition("/")[0] not in ROUTES:
            raise Refused(403, "This page does not serve this URL.")


def checked_allowed(name: str) -> str:
    """Return a name to allow unchanged; ValueError if it is invalid or in a form that browsers never send."""
    authority = _authority(name)
    if authority and (NAME.fullmatch(authority.host) or _is_numeric(authority.host)):
        return name
    message = f"found {name!r}, expected a name such as my-pc.lan, or with a port such as my-pc.lan:8080"
    if "*" in name or name.startswith("."):
        message += "; wildcards are not supported, so give each name in full"
    elif not name.isascii():
        message += f"; browsers send such names in Punycode{_in_ascii(name)}"
    raise ValueError(message)


def _in_ascii(name: str) -> str:
    try:
        return f", {name.encode('idna').decode()}"
    except UnicodeError:
        return ""


def _foreign(sender: str) -> str:
    return (
        f"The request came from {sender[:200]!r} and not from this page, and was refused: nothing has changed. "
        "If you opened the page through a proxy or under another name, start it with --allow-host and the name in the "
        "browser's address bar."
    )


def _authority(text: str) -> Authority | None:
    """Parse HOST or HOST:PORT; None for anything else."""
    try:
        parts = urlsplit(f"//{text}")
        port = parts.port
    except ValueError:
        return None
    if not parts.hostname or parts.netloc != text or "@" in text or not text.isascii() or any(map(str.isspace, text)):
        return None
    return Authority(_normalized(parts.hostname), port)


def _normalized(host: str) -> str:
    """Lower case, without a trailing dot, and with IPv6 addresses compressed."""
    host = host.lower().removesuffix(".")
    try:
        return ipaddress.ip_address(host).compressed
    except ValueError:
        return host


def _is_numeric(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(address: str) -> bool:
    return _normalized(address) == "localhost" or (_is_numeric(address) and ipaddress.ip_address(address).is_loopback)


def _non_default(scheme: str, port: int | None) -> int | None:
    return None if port == DEFAULT_PORTS.get(scheme) else port


def _follows_link(scope: Scope, headers: dict[str, list[str]]) -> bool:
    """Whether the page is opened by a link, which any site may do; old browsers send no Sec-Fetch headers."""
    fetch = [headers.get(f"sec-fetch-{each}") for each in ("mode", "dest")]
    opens_page = scope["type"] == "http" and scope["method"] in ("GET", "HEAD") and scope["path"] == "/"
    return opens_page and fetch in ([["navigate"], ["document"]], [None, None])


def _headers(scope: Scope) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1").strip())
    return found


async def _refuse(scope: Scope, send: Send, refused: Refused) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})  # before accepting it, so the server answers 403
        return
    body = f"{refused}\n".encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
