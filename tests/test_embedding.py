"""An embedding is numbers of one shape for each text encoder, and begins as the words of its init text."""

from __future__ import annotations

import pytest
import torch

from ti_trainer.embedding import Embedding, encoder_of_width, initial_vectors, unwanted
from ti_trainer.errors import EmbeddingFormatError

TOKENS = torch.arange(12.0).reshape(3, 4)


@pytest.mark.parametrize(
    ("num_vectors", "tokens"),
    [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (4, [0, 0, 1, 2]), (6, [0, 0, 1, 1, 2, 2]), (7, [0, 0, 0, 1, 1, 2, 2])],
)
def test_the_init_texts_tokens_are_spread_over_the_vectors_as_in_the_webui(num_vectors: int, tokens: list[int]) -> None:
    assert torch.equal(initial_vectors(TOKENS, num_vectors), TOKENS[tokens])


def test_no_init_text_gives_zeros() -> None:
    assert torch.equal(initial_vectors(TOKENS[:0], 5), torch.zeros(5, 4))


@pytest.mark.parametrize("tokens", [TOKENS, TOKENS[:0]])
def test_initial_vectors_are_fp32_whatever_the_model_is(tokens: torch.Tensor) -> None:
    assert initial_vectors(tokens.half(), 2).dtype == torch.float32


def test_initial_vectors_are_not_the_models_own() -> None:
    tokens = TOKENS.clone().requires_grad_()
    vectors = initial_vectors(tokens, 3)
    vectors += 1
    assert not vectors.requires_grad
    assert torch.equal(tokens, TOKENS)


@pytest.mark.parametrize(
    ("vectors", "expected"),
    [
        ({}, "has no vectors"),
        ({"clip_l": torch.zeros(4)}, r"shape \(4,\) for clip_l"),
        ({"clip_l": torch.zeros(0, 4)}, r"shape \(0, 4\)"),
        ({"clip_l": torch.zeros(2, 0)}, r"shape \(2, 0\)"),
        ({"clip_l": torch.zeros(2, 4, dtype=torch.int64)}, "int64"),
        ({"clip_l": torch.zeros(2, 4), "clip_g": torch.zeros(3, 4)}, "clip_l: 2, clip_g: 3"),
    ],
)
def test_what_no_text_encoder_could_take_is_refused(vectors: dict[str, torch.Tensor], expected: str) -> None:
    with pytest.raises(EmbeddingFormatError, match=expected):
        Embedding("x-word", vectors)


@pytest.mark.parametrize(
    ("widths", "family"),
    [
        ({"clip_l": 768}, "SD 1.x"),
        ({"clip_h": 1024}, "SD 2.x"),
        ({"clip_l": 768, "clip_g": 1280}, "SDXL"),
        ({"clip_g": 1280, "clip_l": 768}, "SDXL"),
        ({"clip_l": 512}, "unknown (clip_l 512)"),
    ],
)
def test_the_widths_tell_the_family(widths: dict[str, int], family: str) -> None:
    embedding = Embedding("x-word", {encoder: torch.zeros(3, width) for encoder, width in widths.items()})
    assert embedding.family == family
    assert embedding.widths == widths
    assert embedding.num_vectors == 3


def test_training_changes_vectors_and_step_only() -> None:
    before = Embedding("x-word", {"clip_l": torch.zeros(2, 4)}, 3, "sd", "0123456789", {"init_text": "cat"})
    after = before.with_vectors({"clip_l": torch.ones(2, 4)}, 9)
    assert (after.name, after.step, after.checkpoint, after.checkpoint_hash, after.info) == (
        "x-word", 9, "sd", "0123456789", {"init_text": "cat"},
    )  # fmt: skip
    assert torch.equal(after.vectors["clip_l"], torch.ones(2, 4))
    assert before.step == 3
    assert not before.vectors["clip_l"].any()


@pytest.mark.parametrize(("width", "encoder"), [(768, "clip_l"), (1024, "clip_h"), (1280, "clip_g"), (64, "clip_l")])
def test_a_lone_tensors_width_tells_its_encoder(width: int, encoder: str) -> None:
    assert encoder_of_width(width) == encoder


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("a photo of my-cat on grass", "a photo of my-cat-neg on grass"),
        ("My-Cat, my-cat2, (my-cat:1.2)", "My-Cat-neg, my-cat2, (my-cat-neg:1.2)"),
        ("my-cat-neg", "my-cat-neg"),
        ("a my-cat <lora:detail:0.8>", "a my-cat-neg"),
        ("a dog", "a dog"),
    ],
)
def test_a_prompt_is_guided_away_from_itself_with_the_negative_in_the_words_place(prompt: str, wanted: str) -> None:
    assert unwanted(prompt, "my-cat") == wanted
