"""Our adapter's numbers against the host's own, inside the running WebUI."""

from __future__ import annotations

from typing import Any

import pytest
from server import Server

pytestmark = pytest.mark.webui


@pytest.mark.parametrize("clip_skip", [1, 2])
def test_text_predictions_and_latents_are_the_hosts_own(webui: Server, clip_skip: int) -> None:
    check(webui.api(f"/ti-check/compare?clip_skip={clip_skip}"))


def check(found: dict[str, Any], least: int = 10) -> None:
    """Fail if a number differs from the host's, or if something was left behind in it; or if there are too few numbers."""
    assert found.pop("the word does nothing", 0) == 0
    assert len(found) > least
    if "gradient" in found:
        check_training(found)
    assert {name: value for name, value in found.items() if not value < 1e-5} == {}


def check_training(found: dict[str, Any]) -> None:
    """What `check_in_forge` finds of gradients, previews and the state afterwards; removes it from `found`."""
    rest = {name: found.pop(name) for name in list(found) if not name.startswith(("text", "pooled", "pixels", "latents"))}
    assert rest["prediction"] < 1e-5
    assert rest["noising"] < 1e-5
    assert rest["relative"] < 0.01
    assert rest["relative after previews"] < 0.01
    by_mode = {name: value for name, value in rest.items() if name.startswith("gradient, ")}
    assert len(by_mode) > 3
    assert {name: value for name, value in by_mode.items() if not value < 1e-5} == {}
    assert (rest["preview, same vectors"], rest["preview, word left"], rest["left behind"]) == (0, 0, [])
    assert rest["preview, other vectors"] > 0
    assert found.pop("pixels changed") == 0
