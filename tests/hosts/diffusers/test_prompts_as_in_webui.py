"""Prompts mean here what they mean in the WebUI: compared with what its own parser and text engine made of them.

tests/fixtures/prompts/make.py made expected.json with the WebUI's code.
"""

from __future__ import annotations

import copy
import json
import sys
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from ti_trainer.errors import ConfigError

sys.path.insert(0, str(Path(__file__).parents[2] / "fixtures" / "prompts"))
from stored import EMBEDDINGS, FILE, FILL, projected, same, vectors_of, whole

if TYPE_CHECKING:
    from ti_trainer.hosts.diffusers.model import DiffusersModel
    from ti_trainer.hosts.diffusers.text import TextEncoder

CASES = json.loads(FILE.read_text(encoding="utf-8"))
UNDERSTOOD = [(prompt, found) for prompt, found in CASES if "error" not in found]
WORDS = {name: {"clip_l": torch.from_numpy(vectors_of(name))} for name in EMBEDDINGS}


@pytest.fixture(scope="module")
def encoders(embedded_model: DiffusersModel) -> dict[str, TextEncoder]:
    """The embedded model's, filled up as CLIP and as OpenCLIP, with the attention of the WebUI's library.

    Other kernels round otherwise, and emphasis divides by a mean, which of the embedded model's numbers is next to 0.
    """
    from ti_trainer.hosts.diffusers.single_file_text import _zero_padded
    from ti_trainer.hosts.diffusers.text import TextEncoder

    (clip,) = embedded_model.text_encoders
    network = copy.deepcopy(clip.module)
    network.set_attn_implementation("eager")
    return {
        "clip": TextEncoder("clip_l", network, clip.tokenizer),
        "open_clip": TextEncoder("clip_l", network, _zero_padded()),
    }


@pytest.mark.parametrize("engine", FILL)
def test_ids_weights_and_places_are_the_webuis(encoders: dict[str, TextEncoder], engine: str) -> None:
    wrong = {}
    for prompt, found in UNDERSTOOD:
        expected = {**found, **(found["open_clip"] if engine == "open_clip" else {})}
        ours = encoders[engine].tokenize(prompt, WORDS)
        numbers = range(len(ours.chunks))
        places = [[[each.offset - 1, each.name] for each in ours.splices if each.chunk == number] for number in numbers]
        weights = ours.weights or ((1.0,) * 77,) * len(ours.chunks)
        theirs = [tuple(chain.from_iterable(repeat(*run) for run in runs)) for runs in expected["weights"]]
        ids = tuple(whole(each, FILL[engine]) for each in expected["ids"])
        if (ours.chunks, list(weights), places) != (ids, theirs, expected["places"]):
            wrong[prompt] = ours, expected
    assert wrong == {}
    assert len(UNDERSTOOD) > 300


@pytest.mark.parametrize("engine", FILL)
def test_the_conditioning_is_the_webuis(encoders: dict[str, TextEncoder], engine: str) -> None:
    wrong: dict[str, Any] = {}
    for prompt, found in UNDERSTOOD[:: 1 if engine == "clip" else 4]:  # which differ in their ids only
        expected = {**found, **(found["open_clip"] if engine == "open_clip" else {})}["hidden"]
        encoder = encoders[engine].ending(found.get("clip_skip", 1) if engine == "clip" else 1)
        with torch.no_grad():
            ours = projected(encoder([prompt], WORDS)[0].numpy())
        if not same(ours, expected, weighted=bool(encoder.tokenize(prompt, WORDS).weights)):
            wrong[prompt] = ours, expected
    assert wrong == {}


def test_what_the_webui_fails_on_is_refused_in_words(encoders: dict[str, TextEncoder]) -> None:
    failing = [prompt for prompt, found in CASES if "error" in found]
    assert failing
    for prompt in failing:
        with pytest.raises(ConfigError, match="expected a number before the bracket"):
            encoders["clip"].tokenize(prompt, {})
