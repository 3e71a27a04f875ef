"""What is said about a picture in training: captions, their tags, and the templates they are put into."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ti_trainer.embedding import word_pattern
from ti_trainer.errors import ConfigError, DatasetError
from ti_trainer.prompts import escaped, weighted_parts

NAME, FILEWORDS = "[name]", "[filewords]"
SHIPPED = Path(__file__).parents[2] / "textual_inversion_templates"


def caption_of(
    image: Path, word_regex: str = "", join_string: str = " ", extension: str = ".txt", otherwise: str = ""
) -> str:
    """The caption of a picture: its text file; without one what it is otherwise.

    Where that is empty too, the picture's name less leading digits and dashes, of that the words wanted.
    """
    text_file = image.with_name(image.stem + extension)
    if text_file.is_file():
        try:
            return text_file.read_text(encoding="utf-8-sig").strip()
        except UnicodeDecodeError as error:
            message = f"The caption {text_file} is not UTF-8 text ({error.reason}): save it as UTF-8."
            raise DatasetError(message) from error
    if otherwise:
        return otherwise
    words = re.sub(r"^[-\d]+\s*", "", image.stem)
    if word_regex:
        found = re.findall(word_regex, words)  # with several groups in the expression, each finding is a tuple
        words = join_string.join(each if isinstance(each, str) else join_string.join(filter(None, each)) for each in found)
    return words


def templates(folders: Sequence[Path] = ()) -> dict[str, Path]:
    """Template files by their names, those of earlier folders first; the ones that ship with us come last."""
    found: dict[str, Path] = {}
    for folder in (*folders, SHIPPED):
        for path in sorted(folder.glob("*.txt")):
            found.setdefault(path.stem, path)
    return found


def find_template(name: str, folders: Sequence[Path] = ()) -> Path | None:
    """The file of one of `templates`, by its name with or without its ending."""
    return templates(folders).get(name.removesuffix(".txt"))


def load_template(name: str, folders: Sequence[Path] = ()) -> list[str]:
    """The lines of a template file, or of one in `templates` by its name; ConfigError if one cannot teach anything."""
    path = find_template(name, folders) or Path(name)
    if not path.is_file():
        message = f"There is no prompt template {name!r}: name a text file, or one of {', '.join(templates(folders))}."
        raise ConfigError(message, "template")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        message = f"The prompt template {path} is not UTF-8 text ({error.reason}): save it as UTF-8."
        raise ConfigError(message, "template") from error
    if not lines:
        message = f"The prompt template {path} is empty: each line is a prompt, such as 'a photo of {NAME}, {FILEWORDS}'."
        raise ConfigError(message, "template")
    without = [line for line in lines if NAME not in line]
    if without:
        message = (
            f"The template {path} has a line without {NAME}, which would train nothing: {without[0]!r}. Put {NAME} into it."
        )
        raise ConfigError(message, "template")
    for line in lines:
        weighted_parts(line)  # which refuses a weight that is no number
    return lines


@dataclass(frozen=True)
class Prompter:
    """Makes a sample's prompt of a caption and a random line of the template; tags are dropped first, then shuffled.

    With a word `negative`, also the prompt to be guided away from: the same with that word, and, if so wished, uncaptioned.
    """

    name: str
    template: Sequence[str]
    shuffle_tags: bool = False
    tag_dropout: float = 0.0
    negative: str = ""
    positive_filewords_only: bool = False

    def __call__(self, caption: str, rng: np.random.Generator) -> str:
        """The prompt for one sample; what is left to chance comes from rng."""
        return self.pair(caption, rng)[0]

    def pair(self, caption: str, rng: np.random.Generator) -> tuple[str, str]:
        """The prompt for one sample, and the negative one; what is left to chance comes from rng."""
        line = self.template[int(rng.integers(len(self.template)))]
        tags = self._tags(caption, rng)
        said = line.replace(FILEWORDS, tags).replace(NAME, escaped(self.name))
        if not self.negative:
            return said, ""
        return said, self._against(
            _without_filewords(line).replace(NAME, escaped(self.name)) if self.positive_filewords_only else said
        )

    def alone(self, caption: str, *, negative: bool = False) -> str:
        """The prompt of a picture of the class: its caption as it is, without the template."""
        said = caption.replace(NAME, escaped(self.name))
        return self._against(said) if negative else said

    def _against(self, prompt: str) -> str:
        """With the negative word wherever the word stands, in captions too."""
        return re.sub(word_pattern(self.name), lambda _: escaped(self.negative), prompt)

    def _tags(self, caption: str, rng: np.random.Generator) -> str:
        if not self.shuffle_tags and not self.tag_dropout:
            return caption
        tags = [tag.strip() for tag in caption.split(",")]
        kept = [tag for tag, draw in zip(tags, rng.random(len(tags)), strict=True) if tag and draw >= self.tag_dropout]
        if self.shuffle_tags:
            kept = [kept[index] for index in rng.permutation(len(kept))]
        return ", ".join(kept)


def _without_filewords(line: str) -> str:
    """A template's line without the caption, and without the commas that stood beside it."""
    parts = [part.replace(FILEWORDS, "").strip() for part in line.split(",")]
    return ", ".join(filter(None, parts))
