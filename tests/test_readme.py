"""The README's tables of options are those that the code declares. `python tests/test_readme.py` writes them."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from ti_trainer.config import preprocessing, training  # noqa: E402

README = ROOT / "README.md"
DECLARED = {"ti_trainer/config/training.py": training, "ti_trainer/config/preprocessing.py": preprocessing}


def block(file: str) -> re.Pattern[str]:
    begin = re.escape(f"<!-- options: written by `python tests/test_readme.py` from {file} -->\n")
    return re.compile(f"({begin}).*?(<!-- end of options -->)", re.DOTALL)


def option_table(declared) -> str:
    lines = []
    for section, title in declared.SECTIONS.items():
        lines += [f"\n**{title}**\n", "| option | default | what it does |", "|---|---|---|"]
        for option in declared.options():
            if option.section == section:
                shown = {"": "empty", " ": "a space", "False": "off", "True": "on"}
                default = shown.get(str(option.default), option.default)
                choices = f" One of {', '.join(option.choices)}." if option.choices else ""
                lines.append(f"| `{option.flag}` | {default} | {option.help}{choices} |")
    return "\n".join(lines) + "\n\n"


@pytest.mark.parametrize("file", DECLARED)
def test_option_table_is_up_to_date(file):
    text, declared = README.read_text(encoding="utf-8"), DECLARED[file]
    assert block(file).search(text).group(0).count("\n| `--") == len(list(declared.options()))
    assert option_table(declared) in text, "run: python tests/test_readme.py"


if __name__ == "__main__":
    text = README.read_text(encoding="utf-8")
    for file, declared in DECLARED.items():
        table = option_table(declared)
        text = block(file).sub(lambda match, table=table: match[1] + table + match[2], text)
    README.write_text(text, encoding="utf-8")
