"""Vectors spliced into a prompt are what the text encoder would make of tokens that had them as their embeddings."""

from __future__ import annotations

import copy
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from ti_trainer.host import ModelOptions
from ti_trainer.training.trainer import Trainer

if TYPE_CHECKING:
    from ti_trainer.hosts.diffusers.model import DiffusersModel

WORDS = {
    "x-word": {"clip_l": torch.randn(3, 64, generator=torch.Generator().manual_seed(0)) * 0.3},
    "y-word": {"clip_l": torch.randn(1, 64, generator=torch.Generator().manual_seed(1)) * 0.3},
}


def reference(model: DiffusersModel, pieces: list[str], layers_left_out: int = 0) -> Tensor:
    """(1, 77, D) of a text encoder to whose vocabulary the vectors were added; pieces are text, or a word by itself."""
    encoder = copy.deepcopy(model.text_encoders[0].module)
    table = encoder.get_input_embeddings()
    table.weight = torch.nn.Parameter(torch.cat([table.weight.detach(), *(each["clip_l"] for each in WORDS.values())]))
    first = {"x-word": 49408, "y-word": 49411}
    ids = [49406]
    token_ids = model.text_encoders[0].token_ids
    for piece in pieces:
        ids += range(first[piece], first[piece] + len(WORDS[piece]["clip_l"])) if piece in WORDS else token_ids(piece)
    ids += [49407] * (77 - len(ids))
    layers = next(module for module in encoder.modules() if isinstance(module, torch.nn.ModuleList))
    del layers[len(layers) - layers_left_out :]
    with torch.no_grad():
        return encoder(torch.tensor([ids])).last_hidden_state


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("a photo of x-word", ["a photo of", "x-word"]),
        ("x-word", ["x-word"]),
        ("X-Word, a y-word on x-word, red", ["x-word", ", a", "y-word", "on", "x-word", ", red"]),
        ("a photo of a cat", ["a photo of a cat"]),
        ("", []),
    ],
)
def test_a_spliced_prompt_is_encoded_as_with_tokens_of_its_own(
    embedded_model: DiffusersModel, prompt: str, pieces: list[str]
) -> None:
    with torch.no_grad():
        hidden = embedded_model.encode_prompts([prompt], WORDS).hidden
    torch.testing.assert_close(hidden, reference(embedded_model, pieces), atol=1e-5, rtol=1e-5)


def test_prompts_of_a_batch_do_not_disturb_each_other(embedded_model: DiffusersModel) -> None:
    with torch.no_grad():
        hidden = embedded_model.encode_prompts(["x-word", "a red y-word", "a cat"], WORDS).hidden
    for row, pieces in zip(hidden, (["x-word"], ["a red", "y-word"], ["a cat"]), strict=True):
        torch.testing.assert_close(row[None], reference(embedded_model, pieces), atol=1e-5, rtol=1e-5)


def test_long_prompts_are_chunks_one_after_the_other_and_short_ones_are_filled_up(embedded_model: DiffusersModel) -> None:
    many = " ".join(["cat"] * 74)
    with torch.no_grad():
        hidden = embedded_model.encode_prompts([f"{many} x-word dog", "y-word"], WORDS).hidden
    assert hidden.shape == (2, 154, 64)
    chunks = [[many], ["x-word", "dog"], ["y-word"], []]
    expected = torch.cat([reference(embedded_model, pieces) for pieces in chunks]).reshape(2, 154, 64)
    torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("clip_skip", [2, 3])
def test_clip_skip_leaves_out_the_last_layers_and_keeps_the_norm(embedded_model: DiffusersModel, clip_skip: int) -> None:
    skipping = replace(embedded_model, options=ModelOptions(clip_skip=clip_skip))
    with torch.no_grad():
        hidden = skipping.encode_prompts(["a photo of x-word"], WORDS).hidden
        encoder = embedded_model.text_encoders[0]
        ids = torch.tensor([[49406, *encoder.token_ids("a cat"), *[49407] * 74]])
        raw = encoder.module(ids, output_hidden_states=True)
        plain = skipping.encode_prompts(["a cat"], WORDS).hidden
    expected = reference(embedded_model, ["a photo of", "x-word"], clip_skip - 1)
    torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(plain, encoder._final_norm(raw.hidden_states[-clip_skip]), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(hidden, reference(embedded_model, ["a photo of", "x-word"]), atol=1e-2)


def weighed(hidden: Tensor, start: int, end: int, weight: float) -> Tensor:
    """(1, 77, D) with some places times a weight, and the mean as before."""
    weights = torch.ones(77)
    weights[start:end] = weight
    after = hidden * weights[None, :, None]
    return after * (hidden.mean() / after.mean())


def test_emphasis_multiplies_what_its_part_became_and_keeps_the_mean(embedded_model: DiffusersModel) -> None:
    with torch.no_grad():
        plain = embedded_model.encode_prompts(["a red x-word star"], WORDS).hidden
        for prompt, places in (
            ("a (red:1.4) x-word star", (2, 3, 1.4)),
            ("a red (x-word:0.7) star", (3, 6, 0.7)),
            ("a red x-word [star]", (6, 7, 1 / 1.1)),
        ):
            torch.testing.assert_close(embedded_model.encode_prompts([prompt], WORDS).hidden, weighed(plain, *places))


def test_escaped_brackets_are_read_and_unescaped_ones_are_not(embedded_model: DiffusersModel) -> None:
    encoder = embedded_model.text_encoders[0]
    assert encoder.tokenize(r"saber \(fate\)", {}).chunks[0][1:6] == (*encoder.token_ids("saber (fate)"), 49407)
    assert encoder.tokenize("(long hair:1.3)", {}).chunks == encoder.tokenize("long hair", {}).chunks


def test_weighed_prompts_of_a_batch_are_as_alone_and_plain_ones_bit_for_bit_as_without(
    embedded_model: DiffusersModel,
) -> None:
    prompts = ["a (x-word:1.4) star", "a red star", "a (red:0.5) star BREAK y-word", "x-word"]
    with torch.no_grad():
        together = embedded_model.encode_prompts(prompts, WORDS).hidden
        unweighed = embedded_model.encode_prompts(
            [re.sub(r"\((.*?):.*?\)", r"\1", prompt) for prompt in prompts], WORDS
        ).hidden
        for row, prompt in zip(together, prompts, strict=True):
            alone = embedded_model.encode_prompts([prompt], WORDS).hidden[0]
            torch.testing.assert_close(row[: len(alone)], alone, atol=1e-5, rtol=1e-4)
    assert torch.equal(together[1], unweighed[1])
    assert torch.equal(together[3], unweighed[3])
    assert torch.equal(together[2, 77:], unweighed[2, 77:])
    assert not torch.equal(together[0], unweighed[0])


def test_emphasis_has_a_gradient_and_accumulated_it_equals_that_of_a_batch(embedded_model: DiffusersModel) -> None:
    prompts = ["a (x-word:1.4) star", "a photo of x-word", "[x-word] on a (red:1.2) star"]

    def gradient(*batches: list[str]) -> Tensor:
        words = {"x-word": {"clip_l": WORDS["x-word"]["clip_l"].clone().requires_grad_()}}
        with embedded_model.training():
            for batch in batches:
                embedded_model.encode_prompts(batch, words).hidden.square().sum().backward()
        return words["x-word"]["clip_l"].grad

    together = gradient(prompts)
    torch.testing.assert_close(gradient(*([each] for each in prompts)), together, rtol=1e-3, atol=1e-3)
    assert (together.abs().sum(1) > 0).all()
    plain = gradient([prompt.replace("(x-word:1.4)", "x-word") for prompt in prompts])
    assert not torch.allclose(plain, together, rtol=1e-2)


def test_emphasis_in_half_precision_is_reckoned_in_float32(embedded_model: DiffusersModel) -> None:
    from ti_trainer.hosts.diffusers.text import _weighted

    hidden, weights = torch.randn(1, 77, 64).half() + 900, torch.full((1, 77), 70.0)  # their product is no half any more
    torch.testing.assert_close(_weighted(hidden, weights), hidden, rtol=2e-3, atol=0)


def test_the_gradient_reaches_every_vector_of_the_prompts_words_only(embedded_model: DiffusersModel) -> None:
    words = {name: {"clip_l": each["clip_l"].clone().requires_grad_()} for name, each in WORDS.items()}
    with embedded_model.training():
        embedded_model.encode_prompts(["a photo of x-word", "x-word, red"], words).hidden.square().sum().backward()
    assert (words["x-word"]["clip_l"].grad.abs().sum(1) > 0).all()
    assert words["y-word"]["clip_l"].grad is None or not words["y-word"]["clip_l"].grad.any()


def test_the_models_own_table_stays_as_it_is(embedded_model: DiffusersModel) -> None:
    before = embedded_model.text_encoders[0].table.weight.detach().clone()
    with torch.no_grad():
        first = embedded_model.encode_prompts(["a cat"], {}).hidden
        embedded_model.encode_prompts(["x-word !"], WORDS)  # "!" is token 0, the placeholder
        assert torch.equal(embedded_model.encode_prompts(["a cat"], {}).hidden, first)
    assert torch.equal(embedded_model.text_encoders[0].table.weight, before)
    assert not embedded_model.text_encoders[0].table._forward_hooks


def test_init_text_gives_its_tokens_rows(embedded_model: DiffusersModel) -> None:
    rows = embedded_model.token_embeddings("a cat")["clip_l"]
    table = embedded_model.text_encoders[0].table.weight
    assert torch.equal(rows, table[embedded_model.text_encoders[0].token_ids("a cat")].detach())
    assert embedded_model.token_embeddings("")["clip_l"].shape == (0, 64)


def test_a_trainer_takes_the_model(embedded_model: DiffusersModel, trainer: type[Trainer]) -> None:
    assert trainer(embedded_model).embedding.family == "embedded"


def test_two_threads_may_share_what_is_remembered(embedded_model: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page counts tokens while a training goes on."""
    from ti_trainer.hosts.diffusers import text

    encoder = replace(embedded_model.text_encoders[0])
    monkeypatch.setattr(text, "REMEMBERED", 1)  # each prompt makes it forget the one before
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda number: encoder.tokenize(f"a photo of {number % 3}", {}).chunks, range(2000)))
    finally:
        sys.setswitchinterval(interval)
    assert found[:3] * 666 == found[:1998]
