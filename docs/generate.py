"""Write the generated pages, options.md and commands.md: `python docs/generate.py`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

from ti_trainer.__main__ import COMMANDS, build_parser  # noqa: E402
from ti_trainer.config import preprocessing, presets, training  # noqa: E402
from ti_trainer.config.options import Option  # noqa: E402

NOTE = "<!-- Written by `python docs/generate.py`: do not edit this page. -->\n\n"
DECLARED = {
    "train": ("Training options", training),
    "queue add": ("Training options", training),
    "preprocess": ("Preprocessing options", preprocessing),
}
DEFAULTS = {"": "empty", " ": "a space", "False": "off", "True": "on"}


def options_page() -> str:
    """Every option of training and preprocessing, and the presets, as tables."""
    parts = [
        NOTE + "# Options",
        "Every option has the same name, default and limits on the page, on the command line and in settings files. On the "
        "command line, switches that are on by default are turned off with `--no-...`. In JSON (`settings.json`, presets, "
        "the API) the name is that of the flag with underscores: `max_steps`.",
        *(each for title, declared in dict(DECLARED.values()).items() for each in _options(title, declared)),
        "## Presets",
        "A preset changes these options; every other option keeps its default.",
        _table(("Preset", "When to use it", "Options"), _presets()),
    ]
    return "\n\n".join(parts) + "\n"


def commands_page() -> str:
    """Every command with its arguments, from the command line's own parser."""
    parts = [
        NOTE + "# Commands",
        "`ti-trainer COMMAND --help` prints the same. Without installation: `python install.py run COMMAND`. "
        "Exit codes: 0 success, 1 failure, 2 unknown arguments, 130 interrupted. All commands have `--debug`, which prints "
        "the traceback of an error.",
    ]
    for name in COMMANDS:
        parts += _command(name)
    return "\n\n".join(parts) + "\n"


PAGES = {"options.md": options_page, "commands.md": commands_page}


def _options(title: str, declared: ModuleType) -> Iterator[str]:
    yield f"## {title}"
    for section, heading in declared.SECTIONS.items():
        rows = [_option_row(option) for option in declared.options() if option.section == section]
        yield f"### {heading}"
        yield _table(("Option", "On the page", "Default", "What it does"), rows)


def _option_row(option: Option) -> tuple[str, ...]:
    text = option.help
    if option.choices:
        text += f" One of {', '.join(option.choices)}."
    elif option.low is not None and option.high is not None:
        text += f" From {option.low:,} to {option.high:,}."
    default = DEFAULTS.get(str(option.default), str(option.default))
    return f"`{option.flag}`", _escaped(option.label), _escaped(default), _escaped(text)


def _presets() -> Iterator[tuple[str, ...]]:
    for name, preset in presets.BUILT_IN.items():
        values = ", ".join(f"`{key}: {DEFAULTS.get(str(value), value)}`" for key, value in preset.values.items())
        yield name, _escaped(preset.about), values


def _command(name: str) -> Iterator[str]:
    subparsers = next(each for each in build_parser(name)._actions if isinstance(each, argparse._SubParsersAction))
    yield from _parser(name, subparsers.choices[name], "##")


def _parser(name: str, parser: argparse.ArgumentParser, heading: str) -> Iterator[str]:
    actions = [each for each in parser._actions if not {"--help", "--debug"} & set(each.option_strings)]
    nested = [each for each in actions if isinstance(each, argparse._SubParsersAction)]
    actions = [each for each in actions if each not in nested]
    yield f"{heading} {name}"
    yield _escaped(parser.description or "")
    required = [_argument(each) for each in actions if each.required]
    yield f"    ti-trainer {name} {' '.join(required)}".rstrip()
    title, declared = DECLARED.get(name, ("", None))
    flags = {option.flag for option in declared.options()} if declared else set()
    rows = [(f"`{_argument(each)}`", _help(each)) for each in actions if not flags & set(each.option_strings)]
    if rows:
        yield _table(("Argument", "What it does"), rows)
    if declared:
        yield f"All [{title.lower()}](options.md#{title.lower().replace(' ', '-')}) are flags of this command too."
    for each in nested:
        for action, made in each.choices.items():
            yield from _parser(f"{name} {action}", made, f"{heading}#")


def _argument(action: argparse.Action) -> str:
    words = [*action.option_strings[:1]]
    if action.nargs != 0 and not isinstance(action, argparse.BooleanOptionalAction):
        words.append(str(action.metavar or action.dest.upper()))
    return " ".join(words) + ("..." if action.nargs in ("*", "+") else "")


def _help(action: argparse.Action) -> str:
    text = (action.help or "") % {**vars(action), "prog": "ti-trainer"}
    return _escaped(f"{text.rstrip('.')}; one of {', '.join(map(str, action.choices))}." if action.choices else text)


def _table(heads: tuple[str, ...], rows: Iterator[tuple[str, ...]] | list[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _escaped(text: str) -> str:
    for each in "|<*":
        text = text.replace(each, "\\" + each)
    return " ".join(text.split())


if __name__ == "__main__":
    for page, write in PAGES.items():
        (DOCS / page).write_text(write(), encoding="utf-8")
