"""A session on five small images, with a host that can be held up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from puppet import CONFIG, Puppet

from ti_trainer.runs.session import Session

resource = None
with suppress(ImportError):  # Windows has none
    import resource


@pytest.fixture
def folder(images: Callable[..., Path]) -> Path:
    return images((16, 16), (24, 16), (16, 16), (16, 24), (24, 16))


@pytest.fixture
def host(tmp_path: Path) -> Puppet:
    return Puppet(tmp_path / "host")


@pytest.fixture
def session(host: Puppet, folder: Path) -> Session:
    return Session(host, "x-word", folder, CONFIG)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """A test may limit how long files become; pytest's own output must not meet that limit."""
    if resource is None:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
