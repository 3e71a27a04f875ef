"""A headless Chromium for tests of pages, driven by playwright; where there is none, the test is skipped and says so.

In CI (TI_TRAINER_CI=1) there must be one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Literal

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Playwright

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")  # the first costs the least
# Fonts and scripts that a page takes from elsewhere must neither be waited for nor make a difference.
ALONE = "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


TIMEOUT_MS = 120_000  # for what takes milliseconds on a machine that has nothing else to do
_open = ExitStack()  # what `close` closes
_playwright: list[Playwright] = []
_browsers: dict[str, Browser] = {}  # by rules of host names


@contextmanager
def launch(
    width: int = 1280, height: int = 900, *, dark: bool = False, hosts: str = "", locale: str = "en-US"
) -> Iterator[Page]:
    """An empty page of this size, in the light or the dark scheme; `hosts` are rules of names that lead here.

    Each page has its own cookies, storage and cache. The browser stays open until `close`.
    """
    rules = ", ".join(filter(None, (hosts, ALONE)))
    if rules not in _browsers:
        _browsers[rules] = _started(rules)
    scheme: Literal["dark", "light"] = "dark" if dark else "light"
    context = _browsers[rules].new_context(viewport={"width": width, "height": height}, color_scheme=scheme, locale=locale)
    try:
        context.set_default_timeout(TIMEOUT_MS)
        yield context.new_page()
    finally:
        context.close()


def close() -> None:
    """Close the browsers. Until then playwright's event loop runs in this thread, where `asyncio.run` is refused."""
    _browsers.clear()
    _open.close()


def _started(rules: str) -> Browser:
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if os.environ.get("TI_TRAINER_CI"):
        assert program, f"no browser on PATH: none of {', '.join(NAMES)}"
        from playwright import sync_api
    else:
        sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    if program is None:
        pytest.skip(f"needs a browser on PATH: one of {', '.join(NAMES)}")
    if not _browsers:
        _playwright.append(_open.enter_context(sync_api.sync_playwright()))
    browser = _playwright[-1].chromium.launch(executable_path=program, args=[*ARGUMENTS, f"--host-resolver-rules={rules}"])
    _open.callback(browser.close)
    return browser


def complaints(page: Page) -> list[str]:
    """A list that from now on grows by every error of the page's scripts and every one that its console shows."""
    heard: list[str] = []
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("console", lambda said: heard.append(said.text) if said.type == "error" else None)
    return heard
