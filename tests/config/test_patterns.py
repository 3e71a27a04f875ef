"""Regular expressions of users: bounded in time, memory and result, whatever they are."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable

import pytest

from ti_trainer.config.patterns import MAX_SEARCHED, compiled, findings, replacing
from ti_trainer.config.training import TrainConfig
from ti_trainer.errors import ConfigError

HUGE = (
    *("(a{1000}){1000}", "a{1000000}", "x{4294967294}", "(?:(?:a{100}){100}){100}", "((((a{100}|b){100})|c){100})"),
    *(
        "(?:" * 20 + "a" + "){2}" * 20,
        "(?r)(a{1000}){1000}",
        "[(]a{900}[)]{ 900}",
        "(?=a{1000}){1000}",
        "(?i)(?:ß{999}){999}",
    ),
)
RECURSIVE = ("(?R)", "(?:a|(?0))", "(b?(?1))", "(?P<x>b?(?&x))", "(?P<x>b?(?P>x))", "(?|((?R)|.)+)", "(b(?-1)?)")
NESTED = (*("(" * n + "a" + ")+" * n for n in (20, 100)), "(" * 20 + "a" + ")+?" * 20, "(?:" * 15 + "a|b" + ")+" * 15)
HIDDEN = ("(?x)(?:a{9 9 9 9 9 9 9})", "(?x)(?:(?:a{9#\n99}){9#\n99})", "(?:a{e<=3})+b", "(a)(?<=\\1(a*))", r"\\{3}a{e}")
CATASTROPHIC = ("(a|aa)+$", "(a|a|aa)+[!?]", "(?:(a*)*)*[!?]", "(.)*(.)*(.)*(.)*(.)*[!?]")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ti_trainer.config.patterns.REPLACING_S", 0.3)
    monkeypatch.setattr("ti_trainer.config.patterns.FINDING_S", 0.2)


def in_bounds(act: Callable[[], object], seconds: float) -> ConfigError:
    """The refusal, that came soon and without much memory."""
    tracemalloc.start()
    begun = time.thread_time()
    with pytest.raises(ConfigError) as refused:
        act()
    assert time.thread_time() - begun < seconds
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    assert str(refused.value).startswith("Field: ")
    return refused.value


@pytest.mark.parametrize(
    "expression", [*HUGE, *RECURSIVE, *NESTED, *HIDDEN, "(", "a" * 5000, "(" * 500 + "a" + ")" * 500, "\\"]
)
def test_what_would_need_much_to_compile_is_refused_before(expression: str) -> None:
    assert in_bounds(lambda: compiled(expression, "Field", "filename_word_regex"), 1).option == "filename_word_regex"
    in_bounds(lambda: replacing(expression, "", "Field", is_regex=True), 1)


@pytest.mark.parametrize("expression", CATASTROPHIC)
def test_what_never_ends_is_ended(expression: str, quick: None) -> None:
    text = "a" * 900 + "b"
    assert "takes too long" in str(in_bounds(lambda: findings(expression, text, "Field"), 2))
    assert "takes too long" in str(in_bounds(lambda: replacing(expression, "", "Field", is_regex=True)(text), 2))


def test_the_patience_is_for_all_texts_together(quick: None) -> None:
    replaced = replacing("(a|aa)+$", "", "Field", is_regex=True)

    def all_of_them() -> None:
        for number in range(1000):
            replaced("a" * 28 + str(number))  # each in good time

    in_bounds(all_of_them, 3)


@pytest.mark.parametrize(
    ("search", "by", "is_regex"),
    [
        (".+", r"\g<0>" * 200, True),
        ("(.+)", r"\1" * 500, True),
        ("", "x" * 1000, True),
        ("a", "x" * 1000, True),
        ("(?=(.*))", r"\1", True),
        ("a", "b" * 1000, False),
        ("", "b" * 1000, False),
        ("a", "x" * 10_000, False),
        ("a", "x" * 10_000, True),
    ],
)
def test_what_would_grow_without_bounds_is_refused(search: str, by: str, is_regex: bool) -> None:
    said = in_bounds(lambda: replacing(search, by, "Field", is_regex=is_regex)("a" * 20_000), 2)
    assert "expected" in str(said)


def test_all_texts_together_are_bounded_too() -> None:
    replaced = replacing("a", "b" * 1000, "Field", is_regex=False), replacing("a", "b" * 1000, "Field", is_regex=True)
    for each in replaced:
        in_bounds(lambda each=each: [each("a" * 90) for _ in range(1000)], 5)
        assert len(each("a")) == 1000, "and the others go on"


def test_what_people_want_is_done_as_re_does_it() -> None:
    assert replacing(r"(\w+) hair", r"hair: \1", "Field", is_regex=True)("red hair, blue hair") == "hair: red, hair: blue"
    assert replacing("(a)(b)?", r"[\2]", "Field", is_regex=True)("ab a") == "[b] []"
    assert replacing(r"\d{4}-\d{2}-\d{2}|[a-z]{1,100} [a-z]{1,100}", "", "Field", is_regex=True)("x 2024-01-02") == "x "
    assert replacing("+", "-", "Field", is_regex=False)("a+b") == "a-b"
    long = "word " * (MAX_SEARCHED // 5)
    assert replacing("word", "cat", "Field", is_regex=True)(long) == long.replace("word", "cat")
    assert findings(r"([a-z])(\d)?", "a1b", "Field") == [("a", "1"), ("b", "")]
    with pytest.raises(ConfigError, match="at most 20000"):
        replacing("word", "cat", "Field", is_regex=True)(long + "word")
    assert findings(r"\{a\}|(?P<x>b)(?P=x)|\w{2,3}?", "{a} bb cat", "Field") == ["", "b", ""]
    for wrong in (r"\U00110000", r"\5", r"\q", r"\g<x>"):
        with pytest.raises(ConfigError, match="expected a regular expression"):
            replacing("a", wrong, "Field", is_regex=True)("a")


@pytest.mark.parametrize("expression", ["(", HUGE[0], RECURSIVE[0]])
def test_the_option_for_words_of_names_is_bounded(expression: str) -> None:
    with pytest.raises(ConfigError, match=r"^Filename word regex: found") as refused:
        TrainConfig(filename_word_regex=expression)
    assert refused.value.option == "filename_word_regex"
