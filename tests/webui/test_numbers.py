"""Our adapter's numbers against the host's own, inside the running WebUI."""

from __future__ import annotations

import pytest
from server import Server

pytestmark = pytest.mark.webui


@pytest.mark.parametrize("clip_skip", [1, 2])
def test_text_predictions_and_latents_are_the_hosts_own(webui: Server, clip_skip: int) -> None:
    differences = webui.api(f"/ti-check/compare?clip_skip={clip_skip}")
    assert differences.pop("the word does nothing") == 0
    assert len(differences) > 10
    assert {name: value for name, value in differences.items() if not value < 1e-5} == {}
