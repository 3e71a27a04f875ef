"""Text conditioning through the host's encoder: what it makes of a prompt, with our vectors in it and a gradient to them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ti_trainer.errors import ConfigError

LONG = "a small red thing, " * 14 + "a zz-cat " + "and more " * 40


@pytest.fixture
def stage(sd_model: Any) -> Any:
    return sd_model.cond_stage_model


def with_vectors(name: str, vectors: torch.Tensor) -> Any:
    return SimpleNamespace(name=name, vec=vectors.detach(), vectors=len(vectors))


@pytest.mark.parametrize(
    "prompt",
    [
        "zz-cat in a garden",
        "a photo of zz-cat, sitting",
        "a photo of zz-cat",
        "zz-cat beside zz-cat",
        "a (photo:1.3) of (zz-cat:0.7), old",
        "thing " * 74 + "zz-cat",
        LONG,
        "a photo of a cat",
        "",
    ],
)
def test_a_prompt_is_encoded_as_by_the_host(prompt: str, webui_model: Callable[..., Any], stage: Any, words: Any) -> None:
    ours = webui_model().encode_prompts([prompt], words).hidden
    stage.register(with_vectors("zz-cat", words["zz-cat"]["clip_l"]))
    hosts = stage([prompt])
    assert ours.shape == hosts.shape
    assert (ours - hosts).abs().max() < 1e-5


def test_each_prompt_of_a_batch_is_weighed_and_filled_up_by_itself(
    webui_model: Callable[..., Any], stage: Any, words: Any
) -> None:
    both = webui_model().encode_prompts(["a (zz-cat:1.4)", LONG], words).hidden
    stage.register(with_vectors("zz-cat", words["zz-cat"]["clip_l"]))
    assert (both[1:] - stage([LONG])).abs().max() < 1e-5
    assert (both[:1, :77] - stage(["a (zz-cat:1.4)"])).abs().max() < 1e-5
    assert (both[:1, 77:154] - stage([""])).abs().max() < 1e-5


def test_the_hosts_own_embeddings_count_in_prompts_too(webui_model: Callable[..., Any], stage: Any, words: Any) -> None:
    stage.register(with_vectors("qq-hat", torch.randn(3, 32)))
    prompt = "zz-cat with a qq-hat"
    tokenized = webui_model().tokenize(prompt, words)
    assert [(each.name, each.offset) for each in tokenized.splices] == [("zz-cat", 1), ("qq-hat", 5)]
    ours = webui_model().encode_prompts([prompt], words).hidden
    stage.register(with_vectors("zz-cat", words["zz-cat"]["clip_l"]))
    assert (ours - stage([prompt])).abs().max() < 1e-5


def test_our_vectors_win_over_the_file_of_the_same_name(webui_model: Callable[..., Any], stage: Any, words: Any) -> None:
    stage.register(with_vectors("zz-cat", torch.randn(5, 32)))
    tokenized = webui_model().tokenize("zz-cat", words)
    assert tokenized.chunks[0][:4] == (stage.id_start, 0, 0, stage.id_end)


def test_clip_skip_is_that_of_the_model_and_normalised(webui_model: Callable[..., Any], stage: Any) -> None:
    transformer = stage.wrapped.transformer
    ids = torch.tensor(webui_model().tokenize("a cat", {}).chunks)
    states = transformer(input_ids=ids, output_hidden_states=True).hidden_states[-2]
    ours = webui_model(clip_skip=2).encode_prompts(["a cat"], {}).hidden
    assert (ours - transformer.text_model.final_layer_norm(states)).abs().max() < 1e-6
    with pytest.raises(ConfigError, match="found 4, expected 1 to 3"):
        webui_model(clip_skip=4)


def test_nothing_is_left_in_the_host(webui_model: Callable[..., Any], stage: Any, words: Any) -> None:
    stage.register(with_vectors("zz-cat", torch.randn(5, 32)))
    database = stage.hijack.embedding_db
    names, lookup = database.word_embeddings, database.ids_lookup
    contents = dict(names), {first: list(pairs) for first, pairs in lookup.items()}
    webui_model().encode_prompts([LONG, "zz-cat"], words)
    assert database.word_embeddings is names
    assert database.ids_lookup is lookup
    assert (names, lookup) == contents
    assert (stage.hijack.fixes, stage.hijack.comments, stage.hijack.extra_generation_params) == (None, [], {})


def test_nothing_is_left_in_the_host_after_an_error(webui_model: Callable[..., Any], stage: Any, words: Any) -> None:
    model = webui_model()
    hook = stage.wrapped.transformer.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.encode_prompts(["zz-cat"], words)
    hook.remove()
    assert stage.hijack.fixes is None


def test_words_are_known_to_the_host_only_while_it_draws(stage: Any) -> None:
    from ti_trainer.hosts.webui.text import registered

    stage.register(with_vectors("zz", torch.randn(5, 32)))
    database = stage.hijack.embedding_db
    names, lookup = database.word_embeddings, database.ids_lookup
    contents = dict(names), {first: list(pairs) for first, pairs in lookup.items()}
    with suppress(KeyboardInterrupt), registered(stage, {"zz-cat": with_vectors("zz-cat", torch.randn(2, 32))}):
        assert [each.name for _, each in stage.tokenize_line("a zz-cat")[0][0].fixes] == ["zz-cat"]  # the longer name
        raise KeyboardInterrupt
    assert database.word_embeddings is names
    assert database.ids_lookup is lookup
    assert (names, lookup) == contents


def test_a_folder_that_the_host_reads_anew_meanwhile_is_not_forgotten(stage: Any) -> None:
    from ti_trainer.hosts.webui.text import registered

    stage.register(with_vectors("old", torch.randn(1, 32)))
    database = stage.hijack.embedding_db
    names = database.word_embeddings
    with registered(stage, {"zz-cat": with_vectors("zz-cat", torch.randn(2, 32))}):
        assert set(database.word_embeddings) == {"old", "zz-cat"}
        database.word_embeddings.clear()
        database.ids_lookup.clear()
        stage.register(with_vectors("new", torch.randn(1, 32)))
    assert database.word_embeddings is names
    assert set(names) == {"new"}
    assert [pairs[0][1].name for pairs in database.ids_lookup.values()] == ["new"]


def test_a_prompt_is_cut_once(webui_model: Callable[..., Any], stage: Any, words: Any) -> None:
    model = webui_model()
    for _ in range(3):
        model.encode_prompts(["a zz-cat"], words)
    assert stage.lines_cut == ["a zz-cat", ""]  # the empty one is what others are filled up with


def test_what_cannot_stand_in_a_prompt_is_refused(webui_model: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="76 vectors: a prompt has room for 75"):
        webui_model().tokenize("zz-cat", {"zz-cat": {"clip_l": torch.zeros(76, 32)}})


def test_init_text_gives_the_embeddings_of_its_tokens(webui_model: Callable[..., Any], stage: Any) -> None:
    ids = stage.tokenize(["a red cat"])[0]
    table = stage.wrapped.transformer.text_model.embeddings.token_embedding.wrapped.weight
    assert torch.equal(webui_model().token_embeddings("a red cat")["clip_l"], table[ids])
    assert webui_model().token_embeddings("")["clip_l"].shape == (0, 32)
    assert torch.equal(webui_model().token_tables()["clip_l"], table)
    assert [webui_model().token_piece(each) for each in (2368, 49408, 10**6)] == ["cat</w>", "", ""]


def test_a_gradient_reaches_only_the_vectors(webui_model: Callable[..., Any], stage: Any, words: Any) -> None:
    webui_model().encode_prompts(["a (zz-cat:1.2)", LONG], words).hidden.square().sum().backward()
    assert words["zz-cat"]["clip_l"].grad.abs().min() > 0
    assert all(each.grad is None for each in stage.parameters())


def test_weights_are_told_and_a_weight_that_is_no_number_is_refused_in_words(
    webui_model: Callable[..., Any], words: Any
) -> None:
    model = webui_model()
    assert model.tokenize("a (zz-cat:1.5) hat", words).weights == ((1, 1, 1.5, 1.5, *[1] * 73),)
    assert model.tokenize("a zz-cat hat", words).weights == ()
    with pytest.raises(ConfigError, match=r"found 1\.2\.3\), expected a number before the bracket"):
        model.tokenize("a (hat:1.2.3)", words)
