"""Collect the texts of the page that never change, in English: the keys of localizations/*.json.

`python docs/strings.py` lists those that a language lacks or no longer needs; tests/ui/test_languages.py fails for them.
What is collected:

- what the built page has: labels, help, placeholders, buttons, tabs, sections, radio buttons and the text nodes of HTML;
- every literal in the source of `ti_trainer/ui` that reads like a text, alone or as a text node of HTML;
- literal messages of the modules in `SHOWN`, whose errors and results the page shows;
- literals in javascript/ that read like a sentence, and what is listed in `others`.

Localizations replace whole text nodes. A text with a value in it is therefore not collected, and stays English. Nor are
names, examples and the values of lists, which settings files and the command line have too: they are written as a word in
small letters or in CamelCase.
"""

from __future__ import annotations

import ast
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ti_trainer"
SHOWN = ("captioning", "config", "data", "formats", "preprocess", "runs", "workbench", "files.py", "host.py", "prompts.py")
NOT_SHOWN = ("api.py", "app.py", "guard.py")  # of ti_trainer/ui
ATTRIBUTES = ("title", "placeholder", "aria-label")
VERBATIM = ("script", "style", "code", "pre", "textarea")
EMPTY = ("br", "hr", "img", "input", "link", "meta")
VALUE = "\0"  # stands for a value in a literal
TEXT = re.compile(r"[A-Z0-9'“◀].*[a-z].*", re.DOTALL)
WORDS = re.compile(r"[a-z\[][\w\]-]*[ :].*[a-z].*", re.DOTALL)  # only in what is built: in the source it may be anything
NO_TEXT = re.compile(rf"{VALUE}|\{{|=>|^[A-Z][a-z]+[A-Z]\w*$|^[\d.]+ \*")
LITERAL_OF_SCRIPT = re.compile(r'"([^"\\\n]+ [^"\\\n]+)"')


class TextNodes(HTMLParser):
    """The text nodes and attributes of HTML that the browser looks translations up for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._text = ""
        self._left_out: list[bool] = []  # for each open element

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """The element's attributes."""
        self.ends()
        given = dict(attrs)
        self.found += [text for name in ATTRIBUTES if (text := given.get(name))]
        if tag not in EMPTY:
            left_out = tag in VERBATIM or given.get("translate") == "no" or given.get("aria-hidden") == "true"
            self._left_out.append(left_out)

    def handle_endtag(self, tag: str) -> None:
        """The end of an element."""
        self.ends()
        if self._left_out:
            self._left_out.pop()

    def handle_data(self, data: str) -> None:
        """A part of a text node."""
        self._text += data

    def ends(self) -> None:
        """The end of a text node."""
        if (text := self._text.strip()) and not any(self._left_out):
            self.found.append(text)
        self._text = ""


def text_nodes(html: str) -> list[str]:
    """The texts of HTML; of a plain text, itself."""
    if "<" not in html:
        return [html]
    parser = TextNodes()
    parser.feed(html)
    parser.close()
    parser.ends()
    return parser.found


def of_page() -> set[str]:
    """The texts of the built page."""
    sys.path.insert(0, str(ROOT / "tests"))
    from fakes import TinyHost

    from ti_trainer.runs.job import Job
    from ti_trainer.ui.layout import build
    from ti_trainer.ui.page import Page

    with tempfile.TemporaryDirectory() as folder:
        page = build(Page(TinyHost(Path(folder)), Job()))
        return {text.strip() for block in page.blocks.values() for text in _of_block(block) if folder not in text}


def _of_block(block: Any) -> Iterator[str]:
    import gradio as gr

    for name in ("label", "info", "placeholder"):
        text = getattr(block, name, None)
        is_hidden = name == "label" and getattr(block, "show_label", True) is False
        is_example = name == "placeholder" and not TEXT.fullmatch(text or "")
        if isinstance(text, str) and not is_hidden and not is_example:
            yield text
    if isinstance(block, gr.HTML | gr.Button) and isinstance(block.value, str):
        yield from text_nodes(block.value)
    if isinstance(block, gr.Radio | gr.CheckboxGroup):
        yield from (each[0] if isinstance(each, tuple) else each for each in block.choices)


def of_source() -> set[str]:
    """The literals of the page's source, and the messages of what it calls."""
    found: set[str] = set()
    for path in sorted((PACKAGE / "ui").rglob("*.py")):
        if path.name not in NOT_SHOWN:
            found.update(_literals(ast.parse(path.read_text(encoding="utf-8"))))
    for name in SHOWN:
        place = PACKAGE / name
        for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
            found.update(_messages(ast.parse(path.read_text(encoding="utf-8"))))
    return found


def _literals(tree: ast.AST) -> Iterator[str]:
    """The text nodes of all literals but docstrings, logged ones and parts of others."""
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            skipped.add(body[0].value)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).startswith(("log.", "re.")):
            skipped.update(node.args)
        elif isinstance(node, ast.JoinedStr):
            skipped.update(node.values)
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            skipped.update(each for each in (node.left, node.right) if "<" not in (_text(each) or ""))
    for node in ast.walk(tree):
        if node not in skipped and (text := _text(node)):
            yield from text_nodes(text)


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
    scripts = (path.read_text(encoding="utf-8") for path in (ROOT / "javascript").glob("*.js"))
    return {text for script in scripts for text in LITERAL_OF_SCRIPT.findall(re.sub("//.*", "", script))}


def others() -> set[str]:
    """Texts that cannot be told from names, and those of other modules."""
    from ti_trainer.config.presets import BUILT_IN
    from ti_trainer.runs.loss_curve import LABELS
    from ti_trainer.runs.quick_stages import STAGES, StageStatus
    from ti_trainer.ui.render import NUMBERS

    presets = (preset.about for preset in BUILT_IN.values())
    return {*NUMBERS, *LABELS.values(), *STAGES.values(), *get_args(StageStatus), *presets}


def collected() -> list[str]:
    """All texts to translate."""
    read = {text for text in of_source() | of_scripts() if TEXT.fullmatch(text)}
    built = {text for text in of_page() if TEXT.fullmatch(text) or WORDS.fullmatch(text)}
    paths = (str(Path.home()), sys.prefix)  # in hints on what is not installed here
    texts = (text for text in read | built if not NO_TEXT.search(text) and not any(each in text for each in paths))
    return sorted({*texts, *others()})


def texts_of(language: str) -> dict[str, str]:
    """A file of localizations/."""
    return json.loads((ROOT / "localizations" / f"{language}.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from ti_trainer.ui.app import LANGUAGES

    wanted = collected()
    if sys.argv[1:]:
        Path(sys.argv[1]).write_text(json.dumps(dict.fromkeys(wanted, ""), indent=1, ensure_ascii=False) + "\n", "utf-8")
    for language in LANGUAGES.values():
        texts = texts_of(language)
        lines = [f"+ {each}" for each in wanted if each not in texts] + [f"- {each}" for each in texts if each not in wanted]
        sys.stdout.write("\n".join([f"{language}: {len(texts)} texts", *lines, ""]))
