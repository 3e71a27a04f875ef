"""Expressions against numpy, their errors, and hostile ones."""

from __future__ import annotations

import random
import time
import tracemalloc

import numpy as np
import pytest

from ti_trainer.errors import ConfigError
from ti_trainer.workbench.evaluation import FUNCTIONS, MAX_VECTORS, Scope, evaluate
from ti_trainer.workbench.expression import MAX_DEPTH, MAX_LENGTH, ExpressionError, parse, quoted

WIDTHS = {"clip_l": 12, "clip_g": 20}
NORMS = {"clip_l": 0.4, "clip_g": 0.7}


def vectors(count: int, seed: int, widths: dict[str, int] | None = None) -> dict[str, np.ndarray]:
    numbers = np.random.default_rng(seed)
    return {e: numbers.standard_normal((count, width)).astype(np.float32) for e, width in (widths or WIDTHS).items()}


EMBEDDINGS = {
    "a": vectors(2, 1),
    "b": vectors(2, 2),
    "one": vectors(1, 3),
    "long": vectors(5, 4),
    "my-cat v1.5": vectors(2, 5),
    "sd1": vectors(2, 6, {"clip_l": 768}),
    "sd2": vectors(2, 7, {"clip_h": 1024}),
    "zero": {e: np.zeros((2, width), np.float32) for e, width in WIDTHS.items()},
    "huge": vectors(MAX_VECTORS, 8),
    "mean": vectors(2, 9),
    'quo"te\\': vectors(2, 10),
}


def embedding(name: str) -> dict[str, np.ndarray]:
    if name not in EMBEDDINGS:
        raise ConfigError(f"there is no embedding {name!r}")
    return EMBEDDINGS[name]


def tokens(text: str) -> dict[str, np.ndarray]:
    return vectors(len(text.split()), len(text))


SCOPE = Scope(embedding, tokens, tokens, lambda: NORMS)


def computed(expression: str) -> dict[str, np.ndarray]:
    return evaluate(expression, SCOPE)


def unit(each: np.ndarray) -> np.ndarray:
    return each / np.linalg.norm(each, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        ("a", lambda a, b, one, long: a),
        ("0.5 * a + 0.5*b", lambda a, b, one, long: 0.5 * a + 0.5 * b),
        ("a - b - b", lambda a, b, one, long: a - b - b),
        ("a - (b - b)", lambda a, b, one, long: a),
        ("-a * 2 / 4", lambda a, b, one, long: -a / 2),
        ("--a", lambda a, b, one, long: a),
        ("2 * a * (3 - 1e0) + .5 * b", lambda a, b, one, long: 4 * a + b / 2),
        ("a + one", lambda a, b, one, long: a + one),
        ("one + a", lambda a, b, one, long: a + one),
        ("long[1:3] + a", lambda a, b, one, long: long[1:3] + a),
        ("long[-1] + long[0]", lambda a, b, one, long: long[4:] + long[:1]),
        ("long[:2][1]", lambda a, b, one, long: long[1:2]),
        ("long[-2:]", lambda a, b, one, long: long[3:]),
        ("cat(a, b[0:1], 2 * one)", lambda a, b, one, long: np.concatenate([a, b[:1], 2 * one])),
        ("cat(a)", lambda a, b, one, long: a),
        ("mean(a, b, one)", lambda a, b, one, long: (a + b + one) / 3),
        ("lerp(a, b, 0.25)", lambda a, b, one, long: 0.75 * a + 0.25 * b),
        ("slerp(a, b, 0)", lambda a, b, one, long: a),
        ("slerp(a, b, 1)", lambda a, b, one, long: b),
        ("slerp(a, a, 0.3)", lambda a, b, one, long: a),
        ("slerp(a, zero, 0.5)", lambda a, b, one, long: a / 2),
        ("normalize(a, 2)", lambda a, b, one, long: 2 * unit(a)),
        ("pad(one, 3)", lambda a, b, one, long: np.concatenate([one, 0 * one, 0 * one])),
        ("MEAN(a, b)", lambda a, b, one, long: (a + b) / 2),
        ("2 * (a\n + b)", lambda a, b, one, long: 2 * (a + b)),
    ],
)
def test_expressions_agree_with_numpy(expression: str, wanted: object) -> None:
    result = computed(expression)
    assert list(result) == list(WIDTHS)
    for encoder, each in result.items():
        given = [EMBEDDINGS[name][encoder].astype(np.float64) for name in ("a", "b", "one", "long")]
        np.testing.assert_allclose(each, wanted(*given), rtol=1e-12, atol=1e-12)


def test_slerp_turns_at_an_even_pace_and_interpolates_the_length() -> None:
    a, b = EMBEDDINGS["a"]["clip_l"].astype(np.float64), EMBEDDINGS["b"]["clip_l"].astype(np.float64)
    for t in (0.25, 0.5, 0.9):
        between = computed(f"slerp(a, b, {t})")["clip_l"]
        lengths = [np.linalg.norm(each, axis=1) for each in (a, b, between)]
        np.testing.assert_allclose(lengths[2], (1 - t) * lengths[0] + t * lengths[1])
        angle, whole = (np.arccos((unit(a) * unit(each)).sum(1)) for each in (between, b))
        np.testing.assert_allclose(angle, t * whole)


def test_normalize_uses_the_usual_length_of_each_encoder_of_the_model() -> None:
    for encoder, each in computed("normalize(3 * a)").items():
        np.testing.assert_allclose(each, NORMS[encoder] * unit(EMBEDDINGS["a"][encoder].astype(np.float64)))


def test_names_and_texts_in_quotes() -> None:
    for name in ("my-cat v1.5", 'quo"te\\', "mean"):
        np.testing.assert_array_equal(computed(quoted(name))["clip_l"], EMBEDDINGS[name]["clip_l"])
    assert quoted("my_cat2") == "my_cat2"
    np.testing.assert_array_equal(computed("'my-cat v1.5'")["clip_g"], EMBEDDINGS["my-cat v1.5"]["clip_g"])
    assert len(computed('cat(tokens("red hair"), text("a (b:1.2)"))')["clip_l"]) == 4


@pytest.mark.parametrize(
    ("expression", "at", "message"),
    [
        ("0.5 * a +)", 9, r"found \), expected a number, an embedding's name"),
        ("", 0, "found the end"),
        ("a +", 3, "found the end"),
        ("my cat", 3, "expected an operator.*written in quotes"),
        ("0.5a", 3, "written in quotes"),
        ("a ** b", 3, r"found \*"),
        ('"a', 0, "without another one"),
        ("\u201ca\u201d", 0, "expected a straight one"),
        ("a; b", 1, "found ';'"),
        ("a.b", 1, "found '.'"),
        ("__import__('os')", 0, "found the function __import__, expected one of cat"),
        ("cat(a, b", 8, "found the end, expected an operator, "),
        ("cat(a,,b)", 6, "found ,"),
        ("nosuch", 0, "no embedding 'nosuch'"),
        ("a + 1", 4, "found the number 1, expected an embedding: numbers multiply"),
        ("1 + 2", 0, "found the number 3, expected an embedding as the result"),
        ("a * b", 4, "expected a number as factor"),
        ("1 / a", 4, "expected a number as divisor"),
        ("a / (1 - 1)", 5, "division by 0"),
        ("a + long", 0, r"differ \(a: 2, long: 5\).*pad\(..., 5\)"),
        ("a[2]", 0, r"found \[2\] of 2 vectors"),
        ("a[1:1]", 0, r"found \[1:1\]"),
        ("a[0:9]", 0, r"at most \[0:2\]"),
        ("a[0.5]", 2, "expected a whole number"),
        ("a[]", 2, r"as in \[0\]"),
        ("a[b]", 2, r"as in \[0\]"),
        ("sd1 + sd2", 6, r"sd1 is for SD 1.x \(clip_l 768\), but sd2 is for SD 2.x \(clip_h 1024\)"),
        ("cat(sd1, a)", 9, "only embeddings of one model"),
        ('sd1 + tokens("x")', 6, "only embeddings of one model"),
        ("normalize(sd1)", 0, r"the loaded model is .*normalize\(a, 0.4\)"),
        ("normalize(zero, 1)", 0, "one of the vectors is zero"),
        ("normalize(a, 0)", 13, "above 0"),
        ("slerp(a, -a, 0.5)", 0, "opposite directions"),
        ("slerp(a, b)", 0, r"found 2 arguments of slerp, expected slerp\(a, b, t\)"),
        ("lerp(a, b, a)", 11, "expected a number as the third"),
        ("mean(a)", 0, "found 1 argument of mean"),
        ("pad(long, 2)", 10, "expected a whole number from 5"),
        ("tokens(red)", 7, "expected a text in quotes"),
        ('tokens("")', 0, "no tokens"),
        ("1e999 * a", 0, "too large"),
        ("1e300 * 1e300 * a", 0, "too large"),
        ("pad(a, 1e300 * 1e300)", 7, "too large"),
        ("pad(a, 1e308 + 1e308)", 7, "too large"),
        ("1e39 * a", 0, "too large for float32"),
        ("cat(huge, a)", 0, f"found {MAX_VECTORS + 2} vectors"),
        ("(" * (MAX_DEPTH + 1) + "a", None, "nested"),
        ("-" * (MAX_DEPTH + 1) + "a", None, "nested"),
        ("a" + "[0:2]" * (MAX_DEPTH + 1), None, "fewer slices"),
        ("cat(" * 500 + "a" + ")" * 500, None, "nested"),
        ("a" * (MAX_LENGTH + 1), None, f"expected at most {MAX_LENGTH}"),
    ],
)
def test_errors_say_where_and_what_was_expected(expression: str, at: int | None, message: str) -> None:
    with pytest.raises(ExpressionError, match=message) as caught:
        computed(expression)
    shown, marks = caught.value.hint.splitlines()
    assert set(marks) == {" ", "^"} or set(marks) == {"^"}
    if at is not None:
        assert f"character {at + 1}:" in str(caught.value)
        assert marks.index("^") == at + (3 if shown.startswith("...") else 0) - max(0, at - 30)


def test_random_expressions_are_computed_or_refused_quickly_and_in_little_memory() -> None:
    numbers = random.Random(7)
    pieces = [
        *"+-*/()[]:,",
        *EMBEDDINGS,
        *(f"{each}(" for each in FUNCTIONS),
        "2",
        "1e9",
        '"x y"',
        "'",
        "\\",
        " ",
        "[0:2]",
        "é",
        "\0",
    ]
    names = ["a", "b", "huge", "huge[0:2]", "one", "2"]

    def nested(depth: int) -> str:
        if not depth:
            return numbers.choice(names)
        parts = [nested(depth - 1) for _ in range(numbers.randint(1, 3))]
        return numbers.choice(["({})", "cat({})", "mean({})", "slerp({}, 0.5)", "normalize({})", "-{}"]).format(
            numbers.choice(["+", ",", "*"]).join(parts)
        )

    start = time.thread_time()
    tracemalloc.start()
    computed_some = 0
    for number in range(600):
        made = "".join(numbers.choices(pieces, k=numbers.randint(1, 30))) if number % 2 else nested(numbers.randint(1, 4))
        try:
            result = computed(made)
        except ExpressionError:
            continue
        computed_some += 1
        assert all(np.isfinite(each).all() for each in result.values())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert computed_some > 20
    assert peak < 200e6
    assert time.thread_time() - start < 20


def test_the_worst_allowed_expression_takes_little_time_and_memory() -> None:
    wide = {"clip_l": vectors(MAX_VECTORS, 1, {"clip_l": 4096})["clip_l"]}
    scope = Scope(lambda name: wide, tokens, tokens, lambda: NORMS)
    tracemalloc.start()
    start = time.thread_time()
    for expression in (
        "+".join(["huge"] * 600),
        "slerp(huge, -2*huge[0], 0.5)",
        f"mean({','.join(f'a{n}' for n in range(600))})",
    ):
        with pytest.raises(ExpressionError):
            evaluate(expression, scope)
    seconds, (_, peak) = time.thread_time() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200e6
    assert seconds < 6  # 2 s each


def test_a_tree_is_made_without_looking_anything_up() -> None:
    assert parse("nosuch + nosuch").start == 0
