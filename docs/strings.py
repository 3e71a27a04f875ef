"""Collect the texts of the page that never change, in English: the keys of localizations/*.json.

`python docs/strings.py` prints those that a language lacks or no longer needs. What is collected:

- what the built page has, on its own and inside a WebUI: labels, help, placeholders, buttons, tabs, sections, choices of
  radio buttons, and the text nodes of HTML;
- every literal in the source of `ti_trainer/ui` that reads like a text: titles, messages, labels of tables, HTML;
- the messages of the modules in `SHOWN`, whose errors and results the page shows;
- literals in javascript/ that read like a text.

Texts with values in them are not translated, so they are left out; in HTML, the text nodes around a value are not.
"""

from __future__ import annotations

import ast
import json
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ti_trainer"
LANGUAGES = ("ja_JP", "zh_CN", "zh_TW")
SHOWN = ("captioning", "config", "data", "formats", "preprocess", "runs", "workbench", "files.py", "host.py", "prompts.py")
ATTRIBUTES = ("title", "placeholder", "aria-label")
VERBATIM = ("script", "style", "code", "pre", "textarea")  # their text is never translated
VALUE = "\0"  # stands for a value in a literal
TEXT = re.compile(r"[A-Z0-9'“◀].*[a-z].*", re.DOTALL)  # or words in small letters, in what the built page shows
WORDS = re.compile(r"[a-z]+[ :].*", re.DOTALL)
NO_TEXT = re.compile(r"\0|\{|=>|[A-Z][a-z]+[A-Z][A-Za-z]*$|[\d.]+ \*|[a-z]+\(.*\)$|[\w-]+(, [\w-]+)+$", re.DOTALL)  # also names and examples
ATTRIBUTE_OF_SCRIPT = re.compile(r'"((?:[^"\\\n]|\\.)+)"')
NOT_ON_THE_PAGE = ("guard.py", "api.py", "app.py")


class TextNodes(HTMLParser):
    """The text nodes and the translated attributes of HTML, as a browser would have them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._verbatim = 0
        self._open: list[bool] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.found += [text for name in ATTRIBUTES if (text := given.get(name))]
        self._data_ends()
        hidden = given.get("aria-hidden") == "true"
        if tag not in ("img", "br", "hr", "input", "meta", "link"):
            self._open.append(tag in VERBATIM or given.get("translate") == "no" or hidden)

    def handle_endtag(self, tag: str) -> None:
        self._data_ends()
        if self._open:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        self._text = getattr(self, "_text", "") + data

    def _data_ends(self) -> None:
        text, self._text = getattr(self, "_text", "").strip(), ""
        if text and not any(self._open):
            self.found.append(text)


def text_nodes(html: str) -> list[str]:
    """The texts of HTML that a translation is looked up for."""
    parser = TextNodes()
    parser.feed(html)
    parser.close()
    parser._data_ends()
    return parser.found


def of_page() -> set[str]:
    """The texts of the built page."""
    sys.path.insert(0, str(ROOT / "tests"))
    from fakes import TinyHost

    from ti_trainer.runs.job import Job
    from ti_trainer.ui.layout import build
    from ti_trainer.ui.page import Page

    with tempfile.TemporaryDirectory() as folder:
        host = TinyHost(Path(folder))
        return {text for block in build(Page(host, Job())).blocks.values() for text in _of_block(block)}


def _of_block(block: object) -> Iterator[str]:
    import gradio as gr

    for name in ("label", "info", "placeholder"):
        text = getattr(block, name, None)
        is_example = name == "placeholder" and not TEXT.fullmatch(text or "")
        if isinstance(text, str) and getattr(block, "show_label", True) is not False and not is_example:
            yield text
    if isinstance(block, gr.HTML | gr.Button) and isinstance(block.value, str):
        yield from text_nodes(block.value) if isinstance(block, gr.HTML) else [block.value]
    if isinstance(block, gr.Radio | gr.CheckboxGroup):
        yield from (each[0] if isinstance(each, tuple) else each for each in block.choices)


def of_source() -> set[str]:
    """The literals of the page's source that read like a text, and the messages of what the page calls."""
    found: set[str] = set()
    for path in sorted((PACKAGE / "ui").rglob("*.py")):
        if path.name not in NOT_ON_THE_PAGE:
            found.update(_literals(ast.parse(path.read_text(encoding="utf-8"))))
    for name in SHOWN:
        place = PACKAGE / name
        for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
            found.update(_messages(ast.parse(path.read_text(encoding="utf-8"))))
    return found


def _literals(tree: ast.AST) -> Iterator[str]:
    """The text nodes of all literals but docstrings, logged ones and parts of sums."""
    skipped = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            skipped.add(body[0].value)
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith(("log.", "re.")):
            skipped.update(node.args)
        if isinstance(node, ast.JoinedStr):
            skipped.update(each for each in node.values if isinstance(each, ast.Constant))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            skipped.update(each for each in (node.left, node.right) if "<" not in (_text(each) or ""))
    for node in ast.walk(tree):
        text = None if node in skipped else _text(node)
        if text:
            yield from text_nodes(text) if "<" in text else [text]


def _messages(tree: ast.AST) -> Iterator[str]:
    """Literals of variables called `message`, which errors are raised with."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "message":
            yield from filter(None, [_text(node.value)])


def _text(node: ast.AST) -> str | None:
    if isinstance(node, ast.JoinedStr):
        return "".join(each.value if isinstance(each, ast.Constant) else VALUE for each in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def of_scripts() -> set[str]:
    """Literals of the scripts that read like a sentence."""
    found: set[str] = set()
    for path in sorted((ROOT / "javascript").glob("*.js")):
        lines = (line for line in path.read_text(encoding="utf-8").splitlines() if not line.strip().startswith("//"))
        found.update(text for line in lines for text in ATTRIBUTE_OF_SCRIPT.findall(line) if " " in text)
    return found


def collected() -> list[str]:
    """All texts to translate."""
    read = {text for text in of_source() | of_scripts() if TEXT.fullmatch(text)}
    built = {text.strip() for text in of_page() if TEXT.fullmatch(text) or WORDS.fullmatch(text)}
    home = str(Path.home())
    return sorted(text for text in read | built if not NO_TEXT.match(text) and VALUE not in text and home not in text)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if sys.argv[1:]:
        Path(sys.argv[1]).write_text(json.dumps(dict.fromkeys(collected(), ""), indent=1, ensure_ascii=False) + "\n")
    for each in (of_page, of_source, of_scripts):
        print(each.__name__, len([text for text in each() if TEXT.fullmatch(text)]))
