"""README, CONTRIBUTING and docs/ agree with the code: generated pages, links, files, command lines and flags."""

from __future__ import annotations

import argparse
import functools
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import generate  # noqa: E402

from ti_trainer.__main__ import build_parser  # noqa: E402

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
STARTS = (["ti-trainer"], ["python", "install.py", "run"], ["python", "-m", "ti_trainer"], ["-m", "ti_trainer"])
OTHER_FLAGS = {
    "--record-slow",  # of other programs
    *("--listen", "--share", "--gradio-auth", "--gradio-allowed-path", "--lowvram", "--medvram"),  # the WebUI
    *("--webui", "--webui-other", "--sdpa", "--seeds", "--out"),  # our tests, kohya's scripts, what made the embedded model
}
OTHER_FILES = {"textual_inversion.py", "train_textual_inversion.py"}  # of diffusers and kohya


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """Without code blocks, which hold no links."""
    return FENCED.sub("", text_of(page))


def blocks(page: Path) -> Iterator[str]:
    """The lines of code blocks, fenced or indented."""
    text = text_of(page)
    yield from FENCED.findall(text)
    yield from ("\n".join(re.findall(r"^ {4}(.*)$", text, re.MULTILINE)),)


def argument_lists(page: Path) -> Iterator[list[str]]:
    """The arguments of each command line of ours."""
    for block in blocks(page):
        for line in block.replace("\\\n", " ").splitlines():
            if not line.startswith(("ti-trainer", "python", "torchrun")):
                continue
            words = shlex.split(line, comments=True)
            for start in STARTS:
                at = words.index(start[0]) if start[0] in words else 0
                if words[at : at + len(start)] == start:
                    yield words[at + len(start) :]
                    break


@functools.cache
def parser_of(command: str) -> argparse.ArgumentParser:
    return build_parser(command)


@functools.cache
def known_flags() -> set[str]:
    """Every flag of every command."""
    flags = {"--help", "--version", "--debug"}
    for command in generate.COMMANDS:
        subparsers = next(each for each in parser_of(command)._actions if isinstance(each, argparse._SubParsersAction))
        flags |= {flag for action in subparsers.choices[command]._actions for flag in action.option_strings}
    return flags


def slugs(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("name", generate.PAGES)
def test_a_generated_page_is_up_to_date(name: str) -> None:
    assert text_of(ROOT / "docs" / name) == generate.PAGES[name](), "run: python docs/generate.py"


def test_the_readme_is_short() -> None:
    assert len(text_of(ROOT / "README.md").splitlines()) <= 200


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, new = set(), {ROOT / "README.md"}
    while new:
        reached |= new
        targets = {(page.parent / link).resolve() for page in new for link in re.findall(r"\]\(([^)#]+\.md)", prose(page))}
        new = targets & set(PAGES) - reached
    assert reached == set(PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    assert links or page.name in generate.PAGES
    for link in links:
        if link.startswith(("http:", "https:")):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in slugs(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    tops = {each.name for folder in (ROOT, ROOT / "ti_trainer") for each in folder.iterdir()}
    for name in re.findall(r"`([\w.-]+(?:/[\w.-]*)*)`", prose(page)):
        if "/" in name and name.split("/")[0] in tops:
            places = (ROOT, ROOT / "ti_trainer")
            assert "NAME" in name or any((place / name).exists() for place in places), f"{name} does not exist"
        elif name.endswith(".py") and name not in OTHER_FILES:
            assert any(ROOT.glob(name)) or any((ROOT / "ti_trainer").rglob(name)), f"{name} does not exist"
    for module in re.findall(r"python -m (ti_trainer\.[\w.]+)", text_of(page)):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_command_lines_can_be_parsed(page: Path) -> None:
    wrong = [arguments for arguments in argument_lists(page) if arguments and not understood(arguments)]
    assert not wrong


def understood(arguments: list[str]) -> bool:
    try:
        parser_of(arguments[0]).parse_args(arguments)
    except SystemExit as error:
        return error.code == 0  # --help
    return True


def test_there_are_command_lines() -> None:
    assert sum(1 for page in PAGES for _ in argument_lists(page)) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_exist(page: Path) -> None:
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*[a-z](?!-?\.\.)", prose(page)))
    assert named <= known_flags() | OTHER_FLAGS
