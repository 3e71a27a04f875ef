"""Keep other web sites out of the served page: who opens one of them in the same browser must not lend it their computer.

A browser sends requests for any site to this machine, also under a name of that site's own (DNS rebinding). So the page
answers to its own names only (the Host header), to requests of its own pages only (Origin, Sec-Fetch-Site, Referer), and
only what it needs of gradio's routes: nothing is uploaded, and no file is served but images that the page itself shows.
Starlette's TrustedHostMiddleware is the first part of this, but does not say what to do, and older ones know no IPv6.
Knows nothing of gradio but its routes.
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
API = "/gradio_api"  # gradio 3 has none
ROUTES = {  # the first part of paths, behind API or not
    *("", "config", "info", "theme.css", "static", "assets", "svelte", "favicon.ico", "manifest.json", "robots.txt"),
    *("queue", "run", "api", "call", "cancel", "reset", "heartbeat", "startup-events"),
    *("app_id", "user", "token", "login_check", "custom_component", "ti_trainer"),
}
FILE = "file="
DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
USUAL_PORTS = set(DEFAULT_PORTS.values())  # browsers leave them out
NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
NOT_FRAMED = [(b"content-security-policy", b"frame-ancestors 'self'"), (b"x-frame-options", b"SAMEORIGIN")]


class Place(NamedTuple):
    """A host and its port; None is the usual one."""

    host: str
    port: int | None


class Refused(Exception):  # noqa: N818  # it is an answer
    """A request that is not answered: the status, and words for the person at the keyboard."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Guard:
    """An ASGI app around another one.

    `address` is what is listened at. At this computer's own it answers to the names of that; at others to every address of
    numbers, which no web site can take for its own, and to this computer's names. `allowed` are more names, NAME or
    NAME:PORT, such as that of a proxy in front of it. `images` is the folder of the only files that are served.
    """

    def __init__(self, app: App, address: str, allowed: Collection[str], images: Path) -> None:
        self.app, self.images = app, images
        places = [place for each in allowed if (place := _place(each))]
        self.allowed = {place._replace(port=None) if place.port in USUAL_PORTS else place for place in places}
        self.names = {*LOCAL, _plain(address), *(place.host for place in self.allowed)}
        self.by_number = not _is_loopback(address)
        if self.by_number:
            name = socket.gethostname().lower()
            self.names |= {name, f"{name.partition('.')[0]}.local"}

    async def __call__(self, scope: Scope, receive: Any, send: Send) -> None:
        """Answer, or say why not."""
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
        except RuntimeError as error:  # a stream for a session that gradio does not know begins as an answer all the same
            if getattr(error.__cause__, "status_code", None) != NOT_FOUND:
                raise
            log.warning("Refused: there is nothing at %.200r for this session; reload the page.", scope["path"])
            await send({"type": "http.response.body", "body": b""})

    def check(self, scope: Scope) -> None:
        """Refused for a request that another site may have sent, or for what the page does not need."""
        headers = _headers(scope)
        place = self._own_place(headers)
        scheme = {"ws": "http", "wss": "https"}.get(scope["scheme"], scope["scheme"])
        self._check_sender(scope, headers, place._replace(port=_unusual(scheme, place.port)), scheme)
        self._check_path(scope["path"])

    def _own_place(self, headers: dict[str, list[str]]) -> Place:
        """The Host that was asked for, if it is us."""
        given = headers.get("host", [])
        place = _place(given[0]) if len(given) == 1 else None
        if place is None:
            raise Refused(400, f"Host: found {given!r:.200}, expected one name and, where need be, a port.")
        if place.host not in self.names and not (self.by_number and _is_number(place.host)):
            message = (
                f"This page was asked for as {place.host!r:.200}, which is not one of its names "
                f"({', '.join(sorted(self.names))}). If another web site did that, nothing has happened. If this is a name "
                f"of this computer that you chose yourself, start the page with --allow-host {place.host:.200}"
            )
            raise Refused(400, message)
        return place

    def _check_sender(self, scope: Scope, headers: dict[str, list[str]], place: Place, scheme: str) -> None:
        """Only our own pages may send anything; without a word of who sent it, it was no browser, or the user."""
        if any(len(headers.get(each, ())) > 1 for each in ("origin", "sec-fetch-site", "referer")):
            raise Refused(403, "A header was sent twice that says which page sent this: such requests are not answered.")
        origin, site, referer = (headers.get(each, [""])[0] for each in ("origin", "sec-fetch-site", "referer"))
        if origin:
            if not self._is_ours(origin, place, scheme):
                raise Refused(403, _foreign(origin))
            return
        ours = site in ("same-origin", "none") if site else not referer or self._is_ours(referer, place, scheme)
        if not ours and not _follows_link(scope, headers):
            raise Refused(403, _foreign(referer or "another site"))

    def _is_ours(self, sender: str, place: Place, scheme: str) -> bool:
        """Whether an origin is where this request went, or one that was allowed by name."""
        try:
            parts = urlsplit(sender)
        except ValueError:
            return False
        found = _place(parts.netloc)
        if found is None or parts.scheme not in ("http", "https"):
            return False
        found = found._replace(port=_unusual(parts.scheme, found.port))
        return (parts.scheme == scheme and found == place) or found in self.allowed

    def _check_path(self, path: str) -> None:
        """What the page needs of gradio's routes; among those that it does not need are those for uploads."""
        rest = path.removeprefix(API).removeprefix("/")
        if rest.startswith(FILE):
            file = rest.removeprefix(FILE)
            if "\0" in file or not is_within(Path(file).absolute(), self.images):
                raise Refused(403, "Only images that this page shows itself are served.")
        elif rest.partition("/")[0] not in ROUTES:
            raise Refused(403, "This page accepts no uploads and does not serve this address.")


def checked_allowed(name: str) -> str:
    """A name to allow, as it was typed; ValueError if it is none, or one that no browser ever sends."""
    place = _place(name)
    if place and (NAME.fullmatch(place.host) or _is_number(place.host)):
        return name
    message = f"found {name!r}, expected a name such as my-pc.lan, or with a port such as my-pc.lan:8080"
    if "*" in name or name.startswith("."):
        message += "; each name must be given in full, since there are no wildcards"
    elif not name.isascii():
        message += f"; browsers send such names in their xn-- form{_in_ascii(name)}"
    raise ValueError(message)


def _in_ascii(name: str) -> str:
    try:
        return f", {name.encode('idna').decode()}"
    except UnicodeError:
        return ""


def _foreign(sender: str) -> str:
    return (
        f"Another web page asked for this: found a request from {sender[:200]!r}, expected one from the page itself. "
        "Nothing was done. If you opened the page through a proxy or under a name of your own, start it with "
        "--allow-host and the name that the browser shows."
    )


def _place(text: str) -> Place | None:
    """A host and port as in an address; None for anything else."""
    try:
        parts = urlsplit(f"//{text}")
        port = parts.port
    except ValueError:
        return None
    if not parts.hostname or parts.netloc != text or "@" in text or not text.isascii() or any(map(str.isspace, text)):
        return None
    return Place(_plain(parts.hostname), port)


def _plain(host: str) -> str:
    """One way to write each: lower case, no dot at the end, IPv6 in short."""
    host = host.lower().removesuffix(".")
    try:
        return ipaddress.ip_address(host).compressed
    except ValueError:
        return host


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(address: str) -> bool:
    return _plain(address) == "localhost" or (_is_number(address) and ipaddress.ip_address(address).is_loopback)


def _unusual(scheme: str, port: int | None) -> int | None:
    return None if port == DEFAULT_PORTS.get(scheme) else port


def _follows_link(scope: Scope, headers: dict[str, list[str]]) -> bool:
    """Whether the page is opened in a tab of its own, which anybody may link to; old browsers do not say where."""
    how = [headers.get(f"sec-fetch-{each}") for each in ("mode", "dest")]
    opens = scope["type"] == "http" and scope["method"] in ("GET", "HEAD") and scope["path"] == "/"
    return opens and how in ([["navigate"], ["document"]], [None, None])


def _headers(scope: Scope) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1").strip())
    return found


async def _refuse(scope: Scope, send: Send, refused: Refused) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})  # before it is accepted: the server answers 403
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
