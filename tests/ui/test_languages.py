"""The page's translations: complete, faithful and shown. In a WebUI its own script shows them."""

from __future__ import annotations

import functools
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("gradio")  # the page is all that needs it

from browser import launch
from test_page import Served, filled_in, served, status, until

from ti_trainer.ui.app import LANGUAGES

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))

import strings  # noqa: E402

__all__ = ["served"]

# What a translation must have as the original does: numbers, HTML, placeholders, file endings and patterns.
FIXED = re.compile(r"(?<![A-Za-z])(?:\d+(?:\.\d+)?|NAME(?![a-z]))|\[\w+\]|\.[a-z]{2,}|\\\S")
TABS = ("Quick train", "Create embedding", "Preprocess", "Train", "Runs", "Embeddings", "Generate")
INNER = (("Create dataset", "Edit captions", "Image quality", "Paint masks"), ("From images", "From a prompt"))
SCRIPT = (ROOT / "javascript" / "ti_trainer_language.js").read_text(encoding="utf-8")


@functools.cache
def collected() -> frozenset[str]:
    return frozenset(strings.collected())


def test_the_collection_has_what_users_see() -> None:
    help_of_an_option = "Weight of a pixel loss between the decoded estimate and the image: 0 is off, 1 as in DreamArtist."
    assert any(text.startswith(help_of_an_option) for text in collected())
    of_page = {"Quick train", "Train Embedding", "All options", "Search the options", "Nothing is running", "maximize area"}
    of_handlers = {"Training finished.", "Lowest validation loss", "No problems found.", "running", "time left"}
    of_errors = {"There is no run to continue: start one.", "Choose an embedding in the list."}
    of_scripts = {"The server did not answer. Check that it is still running, and its log."}
    assert of_page | of_handlers | of_errors | of_scripts <= collected()
    assert not {"cosine", "my-cat", "DreamArtist", ""} & collected(), "names and values"


@pytest.mark.parametrize("language", LANGUAGES.values())
def test_every_text_is_translated_and_nothing_else(language: str) -> None:
    texts = strings.texts_of(language)
    missing, outdated = sorted(collected() - texts.keys()), sorted(texts.keys() - collected())
    assert (missing, outdated) == ([], []), f"localizations/{language}.json; see docs/strings.py"
    assert [text for text, translated in texts.items() if not translated.strip()] == []


@pytest.mark.parametrize("language", LANGUAGES.values())
def test_translations_keep_numbers_html_and_placeholders(language: str) -> None:
    wrong = {}
    for text, translated in strings.texts_of(language).items():
        lost = Counter(FIXED.findall(text)) - Counter(FIXED.findall(translated))
        added = set(re.findall(r"<.*?>", translated)) - set(re.findall(r"<.*?>", text))
        if lost or added or text.count("\n") != translated.count("\n"):
            wrong[text] = (dict(lost), added)
    assert wrong == {}


@pytest.mark.parametrize("language", LANGUAGES.values())
def test_tabs_can_be_told_apart(language: str) -> None:
    texts = strings.texts_of(language)
    for labels in (TABS, *INNER):
        assert len({texts[label] for label in labels}) == len(labels)


LOOSE = """<div id="page"><p>Train</p><p translate="no">Train</p><textarea title="Train">Train</textarea>
<input placeholder="Train" value="Train"><ul role="listbox"><li>Train</li></ul><p>Train <b>Train</b> 3</p>
<button aria-label="Train"> Train </button><p>constructor</p></div>"""
START = """([script, languages]) => {
    Object.defineProperty(navigator, "languages", { value: languages, configurable: true });
    window.asked = null;
    const texts = { Train: "学習", Pause: "一時停止" };
    window.fetch = (url) => (window.asked = url) && Promise.resolve({ json: () => texts });
    (0, eval)(script);
}"""


@pytest.mark.page
def test_exact_texts_are_replaced_and_what_users_typed_is_not() -> None:
    with launch() as page:
        asked = {}
        for languages in (["en-GB", "ja"], ["de"], ["de", "ja-JP"], ["zh-HK"], ["zh-Hant-TW"], ["zh"], ["zh-CN"], ["x"]):
            page.evaluate(START, [f"window.tiTrainerLanguage = 'auto'; {SCRIPT}", languages])
            asked[" ".join(languages)] = page.evaluate("asked && asked.match(/(\\w+)\\.json/)[1]")
        assert list(asked.values()) == [None, None, "ja_JP", "zh_TW", "zh_TW", "zh_CN", "zh_CN", None]
        page.set_content(LOOSE)
        page.evaluate(START, [f"delete window.tiTrainerLanguage; {SCRIPT}", ["ja"]])
        assert page.evaluate("asked") is None, "a WebUI has a script of its own"
        page.evaluate(START, [f"window.tiTrainerLanguage = 'ja'; {SCRIPT}", ["en"]])
        page.get_by_text("学習").first.wait_for()
        texts = page.evaluate("[...page.children].map((each) => each.textContent.trim())")
        assert texts == ["学習", "Train", "Train", "", "Train", "学習学習 3", "学習", "constructor"]
        fields = "[...page.querySelectorAll('textarea, input, button')].map((e) => [e.title, e.placeholder, e.ariaLabel])"
        assert page.evaluate(fields) == [["学習", "", None], ["", "学習", None], ["", None, "学習"]]
        assert page.input_value("input") == "Train"
        page.evaluate("document.querySelector('p').firstChild.data = 'Pause'")
        page.evaluate("document.querySelector('[translate]').firstChild.data = 'Pause'")
        page.evaluate("document.querySelector('ul').insertAdjacentHTML('afterend', '<i title=Pause><u>Pause</u></i>')")
        assert page.evaluate("['p', '[translate]', 'u'].map((e) => document.querySelector(e).textContent)") == [
            "一時停止",
            "Pause",
            "一時停止",
        ]
        assert page.get_attribute("i", "title") == "一時停止"


@pytest.mark.page
@pytest.mark.gradio
def test_the_page_is_used_in_japanese(served: Served) -> None:
    texts = strings.texts_of("ja_JP")
    with launch(locale="ja-JP") as page:
        served.open(page, texts["Quick train"])
        assert page.evaluate("document.documentElement.lang") in ("ja-JP", "ja")  # gradio 6 may set it after us
        page.evaluate("tiTrainerShow('Train')")
        page.locator("#ti_trainer_train_start").get_by_text(texts["Train Embedding"]).wait_for()
        filled_in(page, served, steps=20)
        page.click("#ti_trainer_train_start")
        until(lambda: status(page) == "done")
        strip = page.locator("#ti_trainer_strip")
        strip.get_by_text(texts["Done"]).wait_for()
        assert "x-word" in strip.inner_text()
        page.locator("#ti_trainer_result").get_by_text(texts["Training finished."]).wait_for()
        strip.get_by_text(texts["Show result"]).click()
        page.click("#ti_trainer_open_run")
        page.locator("#ti_trainer_runs_about").get_by_text(texts["Last active"]).wait_for()
