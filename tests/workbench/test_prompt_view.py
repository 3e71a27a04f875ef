"""A prompt as the model sees it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ti_trainer.errors import ConfigError
from ti_trainer.formats.embeddings_dir import Found
from ti_trainer.prompts import PromptTokenizer
from ti_trainer.workbench.prompt_view import Piece, PromptView, _end_of, view

WORDS = {"my-cat": {"clip_l": torch.zeros(3, 64)}}


@pytest.fixture
def see(embedded_model):
    def seen(prompt: str, *skipped: Found) -> PromptView:
        return view(embedded_model, prompt, WORDS, skipped)

    return seen


def test_tokens_have_ids_weights_and_text(see) -> None:
    seen = see("a (red:1.2) my-cat")
    assert [(each.text, each.weight) for each in seen.chunks[0]] == [("a", 1), ("red", 1.2), ("my-cat", 1)]
    assert seen.chunks[0][2] == Piece("my-cat", None, 1.0, 3)
    assert (seen.chunks[0][0].token_id, seen.sizes) == (320, (5,))
    assert seen.notes == ("Embeddings used: my-cat in the prompt.",)
    assert seen.warnings == ()


def test_chunks_breaks_and_escapes(see) -> None:
    seen = see(r"a cat BREAK a \(big\) dog")
    assert [[each.text for each in chunk] for chunk in seen.chunks] == [["a", "cat"], ["a", "(", "big", ")", "dog"]]
    assert any("1 BREAK" in each for each in seen.notes)
    assert any(r"\(, \)" in each for each in seen.notes)
    assert see("cat " * 80).sizes == (75, 5)
    assert see("").sizes == (0,)
    assert see("cat " * 75).sizes == (75,)
    assert see("my-cat my-cat").chunks[0] == (Piece("my-cat", None, 1.0, 3),) * 2


def test_names_that_are_not_loaded_are_pointed_out(see) -> None:
    def unknown(prompt: str) -> list[str]:
        return [each.split()[0] for each in see(prompt).warnings if "looks like the name" in each]

    assert unknown("my-cat, (badhandv4:1.2), <lost>, embedding:other, EasyNegative") == [
        "lost",
        "other",
        "badhandv4",
        "EasyNegative",
    ]
    for plain in ("a photo of 1girl, 8k, 50mm, my-cat, long_hair", "<lora:thing:1> cat", "a cat BREAK a dog", "f1.8"):
        assert unknown(plain) == []


def test_a_file_that_cannot_be_used_is_named_once(see) -> None:
    found = Found(Path("badhandv4.pt"), None, "badhandv4.pt is for SDXL models.")
    warnings = see("my-cat badhandv4", found).warnings
    assert warnings == ("badhandv4 in the prompt was not used: badhandv4.pt is for SDXL models.",)


def test_a_wrong_weight_is_refused(see) -> None:
    with pytest.raises(ConfigError):
        see("(a:1.2.3)")


@pytest.mark.parametrize("pad", [0, 999])
@pytest.mark.parametrize("count", [0, 1, 74, 75])
def test_the_end_of_the_text_is_found_with_any_padding(pad: int, count: int) -> None:
    tokenize = PromptTokenizer(lambda text: [5] * len(text.split()), 998, 999, pad, 6, {})
    (chunk,) = tokenize("a " * count).chunks
    assert _end_of(chunk) == count + 1
