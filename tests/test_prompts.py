"""Prompts become chunks of 75 tokens as in the WebUI, and embeddings are found and placed in them."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest

from ti_trainer.errors import ConfigError
from ti_trainer.formats.naming import syntax_warnings
from ti_trainer.prompts import (
    PromptTokenizer,
    Splice,
    TokenizedPrompt,
    decimal_commas,
    escaped,
    unsupported_syntax,
    weighted_parts,
)

BEGIN, END, PAD, COMMA = 900, 901, 902, 50
VOCABULARY = {",": COMMA, "-": 51, "my": 52, "cat": 53, "big": 54}


def tokenize(text: str) -> list[int]:
    """Words `wN` are token 100 + N."""
    return [VOCABULARY[piece] if piece in VOCABULARY else 100 + int(piece[1:]) for piece in re.findall(r"\w+|[,-]", text)]


def split(prompt: str, num_vectors: Mapping[str, int] | None = None) -> TokenizedPrompt:
    return PromptTokenizer(tokenize, BEGIN, END, PAD, COMMA, num_vectors or {})(prompt)


def words(first: int, last: int) -> str:
    return " ".join(f"w{number}" for number in range(first, last + 1))


def chunk(*ids: int) -> tuple[int, ...]:
    return (BEGIN, *ids, END, *[PAD] * (75 - len(ids)))


def ids(first: int, last: int) -> list[int]:
    return [100 + number for number in range(first, last + 1)]


def test_a_prompt_stands_between_begin_and_end() -> None:
    assert split("w1 w2").chunks == (chunk(101, 102),)


def test_an_empty_prompt_is_one_chunk() -> None:
    assert split("").chunks == (chunk(),)
    assert PromptTokenizer(tokenize, BEGIN, END, PAD, COMMA, {}).padding() == chunk()


def test_75_tokens_fill_a_chunk_and_the_next_starts_another() -> None:
    assert split(words(1, 75)).chunks == (chunk(*ids(1, 75)),)
    assert split(words(1, 76)).chunks == (chunk(*ids(1, 75)), chunk(176))
    assert split(words(1, 151)).chunks == (chunk(*ids(1, 75)), chunk(*ids(76, 150)), chunk(251))


def test_every_chunk_has_77_ids() -> None:
    assert {len(each) for each in split(words(1, 160)).chunks} == {77}


def test_a_clause_that_does_not_fit_moves_on_from_its_comma() -> None:
    prompt = f"{words(1, 60)}, {words(61, 80)}"  # the comma is the 61st token
    assert split(prompt).chunks == (chunk(*ids(1, 60), COMMA), chunk(*ids(61, 80)))


@pytest.mark.parametrize(("before", "moves"), [(55, True), (54, False)])
def test_a_comma_counts_within_20_tokens_of_the_end(before: int, moves: bool) -> None:
    first = split(f"{words(1, before)}, {words(before + 1, 90)}").chunks[0]
    assert (first == chunk(*ids(1, before), COMMA)) is moves


def test_only_the_last_comma_counts() -> None:
    first = split(f"{words(1, 60)}, {words(61, 65)}, {words(66, 90)}").chunks[0]
    assert first == chunk(*ids(1, 60), COMMA, *ids(61, 65), COMMA)


def test_a_comma_after_a_full_chunk_moves_nothing() -> None:
    prompt = f"{words(1, 60)}, {words(61, 74)}, w75"  # 75 tokens, then a comma
    assert split(prompt).chunks == (chunk(*ids(1, 60), COMMA, *ids(61, 74)), chunk(COMMA, 175))


def test_a_comma_of_an_earlier_chunk_does_not_count() -> None:
    prompt = f"{words(1, 70)}, {words(71, 74)} {words(75, 160)}"
    assert split(prompt).chunks == (chunk(*ids(1, 70), COMMA), chunk(*ids(71, 145)), chunk(*ids(146, 160)))


def test_an_embedding_takes_a_token_for_each_vector() -> None:
    found = split("w1 my-cat w2", {"my-cat": 3})
    assert found.chunks == (chunk(101, 0, 0, 0, 102),)
    assert found.splices == (Splice(0, 2, "my-cat"),)


def test_an_embedding_is_found_anywhere_and_every_time() -> None:
    found = split("my-cat, w1 my-cat my-cat,w2", {"my-cat": 1})
    assert found.chunks == (chunk(0, COMMA, 101, 0, 0, COMMA, 102),)
    assert found.splices == (Splice(0, 1, "my-cat"), Splice(0, 4, "my-cat"), Splice(0, 5, "my-cat"))


def test_other_tokens_of_a_name_are_no_embedding() -> None:
    assert split("my cat", {"my-cat": 1}).splices == ()


def test_the_longest_name_wins_whatever_the_order() -> None:
    for names in ({"my-cat": 1, "my-cat-big": 2}, {"my-cat-big": 2, "my-cat": 1}):
        found = split("my-cat-big my-cat", names)
        assert found.splices == (Splice(0, 1, "my-cat-big"), Splice(0, 3, "my-cat"))


def test_a_name_without_tokens_is_never_found() -> None:
    assert split("w1", {"!": 1}).splices == ()


def test_an_embedding_that_does_not_fit_starts_the_next_chunk() -> None:
    found = split(f"{words(1, 73)} my-cat w74", {"my-cat": 3})
    assert found.chunks == (chunk(*ids(1, 73)), chunk(0, 0, 0, 174))
    assert found.splices == (Splice(1, 1, "my-cat"),)


def test_an_embedding_that_just_fits_stays() -> None:
    found = split(f"{words(1, 72)} my-cat w73", {"my-cat": 3})
    assert found.chunks == (chunk(*ids(1, 72), 0, 0, 0), chunk(173))
    assert found.splices == (Splice(0, 73, "my-cat"),)


def test_75_vectors_are_a_chunk_of_their_own() -> None:
    found = split("w1 my-cat w2", {"my-cat": 75})
    assert found.chunks == (chunk(101), chunk(*[0] * 75), chunk(102))
    assert found.splices == (Splice(1, 1, "my-cat"),)


def test_vectors_stay_behind_when_their_clause_moves_as_in_the_webui() -> None:
    prompt = f"my-cat {words(1, 60)}, w61 my-cat {words(62, 80)}"  # clause of 1 + 3 + 19
    found = split(prompt, {"my-cat": 3})
    assert found.chunks == (chunk(0, 0, 0, *ids(1, 60), COMMA), chunk(161, 0, 0, 0, *ids(62, 80)))
    assert found.splices == (Splice(0, 1, "my-cat"), Splice(0, 66, "my-cat"))  # in what fills the first chunk up
    assert found.stranded == ("my-cat",)


def test_where_vectors_stand_there_are_placeholders() -> None:
    found = split(f"my-cat {words(1, 70)}, my-cat, my-cat {words(1, 90)} my-cat", {"my-cat": 4})
    for splice in found.splices:
        assert found.chunks[splice.chunk][splice.offset : splice.offset + 4] == (0, 0, 0, 0)
    assert sum(each.count(0) for each in found.chunks) == 4 * len(found.splices) == 16


def test_weights_are_those_of_the_ids_and_there_are_none_without_emphasis() -> None:
    assert split("w1 my-cat, w2", {"my-cat": 2}).weights == ()
    assert split("(w1:1.0)").weights == ()
    (row,) = split("w1 (my-cat:1.5) [w2]", {"my-cat": 2}).weights
    assert row == (1, 1, 1.5, 1.5, 1 / 1.1, *[1] * 72)


def test_a_name_is_found_in_one_part_only() -> None:
    assert split("my-(cat)", {"my-cat": 1}).splices == ()
    assert split("(my)(-)(cat)", {"my-cat": 1}).splices == (Splice(0, 1, "my-cat"),)  # weighed alike, they are one part


def test_break_starts_a_chunk() -> None:
    assert split("w1 BREAK w2 BREAK").chunks == (chunk(101), chunk(102))
    assert split("BREAK BREAK w1").chunks == (chunk(), chunk(), chunk(101))
    assert split("w1 BREAK my-cat", {"my-cat": 1}).splices == (Splice(1, 1, "my-cat"),)


def test_very_long_and_deep_prompts_are_read_in_time() -> None:
    for prompt in ("(w1" * 500, "(a)" * 20_000, " " * 100_000 + "BREAK", ":" * 100_000, "(:1)" * 20_000, "\\" * 100_001):
        assert weighted_parts(prompt)
    for prompt in ("(" * 100_000, "[a" * 100_000):
        with pytest.raises(ConfigError, match="more than 500 nested brackets"):
            weighted_parts(prompt)


@pytest.mark.parametrize("weight", ["1.2.3", ".", "9" * 400])
def test_a_weight_that_is_no_number_is_refused(weight: str) -> None:
    with pytest.raises(ConfigError, match=r"expected a number before the bracket"):
        weighted_parts(f"a (w1:{weight})")
    assert weighted_parts(f"w1:{weight})") == [(f"w1:{weight})", 1.0)]


@pytest.mark.parametrize("text", ["a", r"bad (v2)", r"[x]\(y", "((", "a: b"])
def test_what_is_escaped_is_one_part_and_itself(text: str) -> None:
    assert weighted_parts(escaped(text)) == [(text, 1.0)]


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("a (red:1.2) [old] cat, x|y, a: b, <w2>, band", {}),
        ("a <lora:x:1> b <hypernet:y>", {"Extra networks": "<lora:x:1>"}),
        ("a cat AND a dog", {"Combined prompts": "AND"}),
        ("a [red:blue:0.5] cat", {"Scheduled words": "[red:blue:0.5]"}),
        ("[late: 5 ]", {"Scheduled words": "[late: 5 ]"}),
        ("[gone::.7]", {"Scheduled words": "[gone::.7]"}),
        ("[[deep]:3]", {"Scheduled words": "[[deep]:3]"}),
        ("[a|b] [c|]", {"Alternating words": "[a|b]"}),
        (r"\[a|b\] \[a:1\] [a\|b]", {}),
    ],
)
def test_what_only_the_webuis_generation_does_is_found(prompt: str, found: dict[str, str]) -> None:
    assert unsupported_syntax(prompt.replace(r"\\", "\\")) == found


def test_weights_with_a_decimal_comma_are_found() -> None:
    prompt = r"a (hat:1,3), (a, b), (red:1.2), \(x:1,5), \(x:1,5\), y:1,2"
    assert list(decimal_commas(prompt)) == [("(hat:1,3)", "(hat:1.3)")]
    assert weighted_parts("(hat:1,3)") == [("hat:1,3", 1.1)], "as in the WebUI"
    (said,) = syntax_warnings("captions", "a cat", prompt)
    assert said.startswith("(hat:1,3) in the captions is read as plain text")


def test_more_vectors_than_a_chunk_holds_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'my-cat' has 76 vectors.*room for 75"):
        split("w1", {"my-cat": 76})


def test_placeholders_leave_the_end_of_text_the_highest_id() -> None:
    """Text encoders pool there: with CLIP's ids the first highest one is the end."""
    found = PromptTokenizer(tokenize, 49406, 49407, 49407, COMMA, {"my-cat": 3})("w1 my-cat w2")
    assert found.chunks[0].index(max(found.chunks[0])) == 6
