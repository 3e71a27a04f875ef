"""The README's table of options is the one that config.py declares. `python tests/test_readme.py` writes it."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from ti_trainer.config import SECTIONS, options  # noqa: E402

README = ROOT / "README.md"
BLOCK = re.compile(r"(<!-- options: [^\n]*-->\n).*?(<!-- end of options -->)", re.DOTALL)


def option_table() -> str:
    lines = []
    for section, title in SECTIONS.items():
        lines += [f"\n**{title}**\n", "| option | default | what it does |", "|---|---|---|"]
        for option in options():
            if option.section == section:
                shown = {"": "empty", " ": "a space", "False": "off", "True": "on"}
                default = shown.get(str(option.default), option.default)
                choices = f" One of {', '.join(option.choices)}." if option.choices else ""
                lines.append(f"| `{option.flag}` | {default} | {option.help}{choices} |")
    return "\n".join(lines) + "\n\n"


def test_option_table_is_up_to_date():
    assert BLOCK.search(README.read_text(encoding="utf-8")).group(0).count("\n| `--") == len(list(options()))
    assert option_table() in README.read_text(encoding="utf-8"), "run: python tests/test_readme.py"


if __name__ == "__main__":
    text = README.read_text(encoding="utf-8")
    README.write_text(BLOCK.sub(lambda match: match[1] + option_table() + match[2], text), encoding="utf-8")
