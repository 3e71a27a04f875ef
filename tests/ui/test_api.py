"""What the page does, called by a script with gradio's own client."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest

from ti_trainer import formats

pytestmark = pytest.mark.page

gradio_client = pytest.importorskip("gradio_client")

from test_guard import PREFIX  # noqa: E402
from test_page import Served, served  # noqa: E402, F401, the fixture


def calls(url: str) -> Callable[..., object]:
    """Calls an endpoint by its name."""
    client = gradio_client.Client(url)

    def call(name: str, *given: object) -> object:
        answer = client.predict(*given, api_name=f"/ti_trainer_{name}")
        if isinstance(answer, str) and answer.endswith(".json"):  # older clients put JSON into a file
            with open(answer, encoding="utf-8") as file:  # noqa: PTH123
                return json.load(file)
        return answer

    return call


@pytest.mark.gradio
def test_a_script_can_create_train_watch_and_stop(served: Served) -> None:  # noqa: F811
    call = calls(served.url)
    assert "Created my-api with 3 vectors" in call("create", "my-api", "red cat", 3, False)
    options = json.dumps({"max_steps": 100_000, "preview_every": 0})
    assert call("train", "my-api", str(served.images), options)["name"] == "my-api"
    end = time.monotonic() + 120
    while call("status")["step"] < 10:
        assert time.monotonic() < end
        time.sleep(0.2)
    call("stop")
    while call("status")["status"] != "stopped":
        assert time.monotonic() < end
        time.sleep(0.2)
    assert call("status")["embedding"].endswith("my-api.safetensors")


def test_a_script_can_create_a_word_with_its_negative_and_train_both(served: Served) -> None:  # noqa: F811
    call, folder = calls(served.url), served.folder / "embeddings"
    assert "Created my-pair with 2 vectors" in call("create_pair", "my-pair", "red cat", 2, False, 5, "blurry")
    before = formats.read(folder / "my-pair-neg.safetensors")
    assert (before.num_vectors, before.info["init_text"]) == (5, "blurry")
    options = {"max_steps": 2, "preview_every": 0, "negative": True, "width": 16, "height": 16}
    call("train", "my-pair", str(served.images), json.dumps(options))
    end = time.monotonic() + 120
    while call("status")["status"] != "done":
        assert time.monotonic() < end
        time.sleep(0.2)
    assert [formats.read(folder / f"my-pair{kind}.safetensors").step for kind in ("", "-neg")] == [2, 2]

    for given, said in (
        (("my-pair", "cat", 2, False, 5, "*"), "There is an embedding 'my-pair' already"),
        (("other", "cat", 2, False, 76, "*"), "found 76"),
        (("a/b", "cat", 2, False, 5, "*"), "contains /"),
    ):
        with pytest.raises(Exception, match=said):
            call("create_pair", *given)
    assert not list(folder.glob("other*")), "both or neither"
    assert "Created alone" in call("create_pair", "alone", "cat", 2, False, 0, "*")
    assert [path.name for path in folder.glob("alone*")] == ["alone.safetensors"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ('{"template": "/etc/passwd"}', "no prompt template"),
        ('{"maxsteps": 3}', "Unknown options"),
        ("[1]", "found a list, expected an object"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"seed": 1, "seed": 2}', "appears more than once"),
        ('{"max_steps": 0}', "at least 1"),
    ],
)
def test_what_cannot_be_is_refused(served: Served, options: str, said: str) -> None:  # noqa: F811
    client = gradio_client.Client(served.url)
    with pytest.raises(Exception, match=said):  # the client's own kind, which differs from version to version
        client.predict("x-word", str(served.images), options, api_name="/ti_trainer_train")


def test_a_refusal_is_a_line_in_the_console_and_a_fault_of_ours_a_traceback(served: Served) -> None:  # noqa: F811
    call, before = calls(served.url), len(served.console)
    with pytest.raises(Exception, match="There is an embedding 'x-word' already") as refused:
        call("create", "x-word", "cat", 2, False)
    assert "'There" not in str(refused.value), "no quotes around it"
    with pytest.raises(Exception, match="no paused run"):
        call("resume")
    first, second = served.console[before:].splitlines()
    assert first.startswith("Refused: There is an embedding 'x-word' already")
    assert second.startswith("Refused: There is no paused run")
    with pytest.raises(Exception):  # noqa: B017, PT011  # whatever gradio makes of it
        call("create", "my-fault", "cat", "many", False)
    assert "Traceback" in served.console


def test_what_asks_for_no_session_or_with_no_values_is_a_line_in_the_console(served: Served) -> None:  # noqa: F811
    place, before = urlsplit(served.url).netloc, len(served.console)
    for method, path, body in (
        ("GET", f"{PREFIX}/queue/data?session_hash=unknown", None),
        ("POST", f"{PREFIX}/run/ti_trainer_create", '{"data": []}'),
    ):
        connection = http.client.HTTPConnection(place, timeout=60)
        connection.request(method, path, body, {"Content-Type": "application/json"})
        connection.getresponse().read()
    said = served.console[before:].splitlines()
    assert all(line.startswith("Refused: ") for line in said), said
    assert "didn't receive enough input values" in said[-1]
