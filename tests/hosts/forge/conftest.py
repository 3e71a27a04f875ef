"""A running Forge of stand-ins, and our Host in it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# A WebUI's own Python may lack it, and the stand-ins have their VAE from it.
collect_ignore_glob = ["test_*.py"] if importlib.util.find_spec("diffusers") is None else []


@pytest.fixture
def forge(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The host's modules, in place; a test may be parametrized with options of `Host`."""
    from forge_modules import Host, forget_ours
    from forge_networks import TextEngine

    options = {"text_engine": TextEngine, **getattr(request, "param", {})}
    host = Host(tmp_path, **options)
    forget_ours()
    host.install(monkeypatch)
    yield host
    forget_ours()


@pytest.fixture
def ours(forge: Any) -> Any:
    """The ForgeHost in it."""
    from ti_trainer.hosts.forge.host import ForgeHost

    return ForgeHost(is_public=False)
