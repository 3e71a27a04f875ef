"""Make the prompts of training from captions, tags and templates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ti_trainer.config.patterns import WORD_REGEX, findings
from ti_trainer.data.caption_text import MOST_BYTES
from ti_trainer.data.image_names import says_something, words_of
from ti_trainer.embedding import word_pattern
from ti_trainer.errors import ConfigError
from ti_trainer.prompts import escaped, weighted_parts
from ti_trainer.resources import RESOURCES

NAME, FILEWORDS = "[name]", "[filewords]"
WITH_CAPTIONS = "_filewords"  # how names of templates end that have another for images without a caption
MOST_LINE = 2000  # characters of a template's line, which may hold many captions
SHIPPED = RESOURCES / "textual_inversion_templates"


def name_caption(image: Path, word_regex: str = "", join_string: str = " ") -> str | None:
    """What an image's file name says, less the numbers around it; None if that is nothing, as of IMG_2031.

    With a regular expression the words that it finds in the name, whatever they say.
    """
    if not word_regex:
        return words_of(image.stem) if says_something(image.stem) else None
    words = re.sub(r"^[-\d]+\s*", "", image.stem)  # the WebUI's, whose users' expressions expect it
    found = findings(word_regex, words, *WORD_REGEX)  # with several groups in the expression, each finding is a tuple
    return (
        join_string.join(each if isinstance(each, str) else join_string.join(filter(None, each)) for each in found) or None
    )


def templates(folders: Sequence[Path] = ()) -> dict[str, Path]:
    """Template files by their names, those of earlier folders first; the ones that ship with us come last."""
    found: dict[str, Path] = {}
    for folder in (*folders, SHIPPED):
        for path in sorted(folder.glob("*.txt")):
            if path.is_file():  # and no folder, and no pipe, which may never end
                found.setdefault(path.stem, path)
    return found


def find_template(name: str, folders: Sequence[Path] = ()) -> Path | None:
    """The file of one of `templates`, by its name with or without its ending."""
    return templates(folders).get(name.removesuffix(".txt"))


def load_template(name: str, folders: Sequence[Path] = ()) -> list[str]:
    """The lines of a template file, or of one in `templates` by its name; ConfigError if one cannot teach anything.

    One without [name] can where it has [filewords], if all captions have the word in them: `plan` sees to that.
    """
    path = find_template(name, folders) or Path(name)
    if not path.is_file():
        message = f"There is no prompt template {name!r}: name a text file, or one of {', '.join(templates(folders))}."
        raise ConfigError(message, "template")
    if path.stat().st_size > MOST_BYTES:
        message = (
            f"The prompt template {path} is larger than {MOST_BYTES} bytes: expected a text file with a prompt in each line."
        )
        raise ConfigError(message, "template")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        message = f"The prompt template {path} is not UTF-8 text ({error.reason}): save it as UTF-8."
        raise ConfigError(message, "template") from error
    if not lines:
        message = f"The prompt template {path} is empty: each line is a prompt, such as 'a photo of {NAME}, {FILEWORDS}'."
        raise ConfigError(message, "template")
    if (longest := max(map(len, lines))) > MOST_LINE:
        message = f"The template {path} has a line of {longest} characters, expected at most {MOST_LINE}."
        raise ConfigError(message, "template")
    without = [line for line in lines if NAME not in line and FILEWORDS not in line]
    if without:
        message = (
            f"The template {path} has a line without {NAME}, which would train nothing: {without[0]!r}. Put {NAME} into it."
        )
        raise ConfigError(message, "template")
    for line in lines:
        weighted_parts(line)  # which refuses a weight that is no number
    return lines


def load_plain(name: str, folders: Sequence[Path] = ()) -> list[str]:
    """The lines for images without a caption: those of `subject` for `subject_filewords`; none if there is no such file."""
    plain = plain_name(name)
    if not plain:
        return []
    path = find_template(plain, folders) or Path(f"{plain}.txt")
    if not path.is_file():
        return []
    lines = load_template(str(path))
    return lines if all(NAME in line and FILEWORDS not in line for line in lines) else []


def plain_name(name: str) -> str:
    """The name, or path, of the template that goes with one with captions: `subject` for `subject_filewords`; else ""."""
    stem = name.removesuffix(".txt")
    return stem.removesuffix(WITH_CAPTIONS) if stem.endswith(WITH_CAPTIONS) else ""


def has_filewords(template: Sequence[str]) -> bool:
    """Whether captions are used at all."""
    return any(FILEWORDS in line for line in template)


@dataclass(frozen=True)
class Prompter:
    """Makes a sample's prompt of a caption and a random line of the template; tags are dropped first, then shuffled.

    A caption None is that of an image without one: its line comes from `plain`, or from the template, without [filewords].
    With a word `negative`, also the prompt to be guided away from: the same with that word, and, if so wished, uncaptioned.
    With `weights`, the name has a random one of them. With `both`, the negative prompt is not one to be guided away from,
    but trained on as well: each sample is made with either. `phrase_share` of the prompts get a phrase (`phrases`).
    """

    name: str
    template: Sequence[str]
    shuffle_tags: bool = False
    tag_dropout: float = 0.0
    negative: str = ""
    positive_filewords_only: bool = False
    plain: Sequence[str] = ()
    weights: Sequence[float] = ()
    both: bool = False
    phrase_share: float = 0.0

    def __call__(self, caption: str | None, rng: np.random.Generator) -> str:
        """The prompt for one sample; what is left to chance comes from rng."""
        return self.pair(caption, rng)[0]

    @property
    def names(self) -> tuple[str, ...]:
        """The names that prompts are trained on with: one, or with `both` also the negative's."""
        return (self.name, self.negative) if self.both else (self.name,)

    @cached_property
    def uncaptioned(self) -> tuple[str, ...]:
        """The lines for images without a caption; one that has no [name] is [name] alone."""
        lines = self.plain or [_without_filewords(line) for line in self.template]
        return tuple(line if NAME in line else NAME for line in lines)

    def pair(self, caption: str | None, rng: np.random.Generator) -> tuple[str, str]:
        """The prompt for one sample, and the negative one; what is left to chance comes from rng."""
        lines = self.uncaptioned if caption is None else self.template
        line = lines[int(rng.integers(len(lines)))]
        tags = "" if caption is None else self._tags(caption, rng, line)
        prompt = line.replace(FILEWORDS, tags).replace(NAME, self._named(rng))
        if not self.negative:
            return prompt, ""
        return prompt, self._against(
            _without_filewords(line).replace(NAME, escaped(self.name)) if self.positive_filewords_only else prompt
        )

    def first(self, count: int) -> list[str]:
        """The prompts of `count` images without captions: the template's lines and names or weights in turn."""
        names = [weighted(self.name, each) for each in self.weights] or [*map(escaped, self.names)]
        prompts = [line.replace(NAME, name) for line in self.uncaptioned for name in names]
        return [prompts[index % len(prompts)] for index in range(count)]

    def _named(self, rng: np.random.Generator) -> str:
        if not self.weights:
            return escaped(self.name)
        return weighted(self.name, self.weights[int(rng.integers(len(self.weights)))])

    def longest(self, caption: str) -> str:
        """The longest prompt that a caption may become."""
        return max((line.replace(FILEWORDS, caption).replace(NAME, escaped(self.name)) for line in self.template), key=len)

    def alone(self, caption: str | None, *, negative: bool = False) -> str:
        """The prompt of an image of the class: its caption as it is, without the template."""
        prompt = (caption or "").replace(NAME, escaped(self.name))
        return self._against(prompt) if negative else prompt

    def has_word(self, text: str) -> bool:
        """Whether a caption has the word in it."""
        return NAME in text or re.search(word_pattern(self.name), text) is not None

    def _against(self, prompt: str) -> str:
        """With the negative word wherever the word stands, in captions too."""
        return re.sub(word_pattern(self.name), lambda _: escaped(self.negative), prompt)

    def _tags(self, caption: str, rng: np.random.Generator, line: str) -> str:
        if not self.shuffle_tags and not self.tag_dropout:
            return caption
        tags = [tag.strip() for tag in caption.split(",")]
        kept = [
            tag
            for tag, draw in zip(tags, rng.random(len(tags)), strict=True)
            if tag and (draw >= self.tag_dropout or (NAME not in line and self.has_word(tag)))  # what teaches the word stays
        ]
        if self.shuffle_tags:
            kept = [kept[index] for index in rng.permutation(len(kept))]
        return ", ".join(kept)


def weighted(name: str, weight: float) -> str:
    """An embedding's name with a weight, as in a prompt."""
    return f"({escaped(name)}:{weight:g})"


def _without_filewords(line: str) -> str:
    """A template's line without the caption, and without the commas that stood beside it."""
    parts = [part.replace(FILEWORDS, "").strip() for part in line.split(",")]
    return ", ".join(filter(None, parts))
