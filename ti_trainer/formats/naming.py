"""Names of embeddings in prompts: whether a prompt can contain one, which ones it contains, and likely typos."""

from __future__ import annotations

import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ti_trainer.embedding import word_pattern
from ti_trainer.errors import ConfigError
from ti_trainer.formats import embeddings_dir
from ti_trainer.formats.embeddings_dir import IMAGES, Found
from ti_trainer.prompts import decimal_commas, escaped, unsupported_syntax

if TYPE_CHECKING:
    from ti_trainer.model import DiffusionModel, Vectors

STRANDED = (
    "{0} is at the 75-token limit of the {1}. As in the WebUI, its vectors do not move to the next chunk with the text "
    "around it: shorten the {1}, or put BREAK before it."
)
LONG_ENOUGH = 4  # letters; shorter names are too similar to other words


@dataclass(frozen=True)
class PromptReport:
    """The embeddings used in prompts as a sentence, and warnings."""

    used: str
    warnings: tuple[str, ...]


def has_word(model: DiffusionModel, prompt: str, name: str) -> bool:
    """Whether a prompt contains the name of an embedding: otherwise training on it has no effect."""
    return bool(_words_in(model, prompt, [name]))


def _words_in(model: DiffusionModel, prompt: str, names: Iterable[str]) -> set[str]:
    """The names that a prompt contains: at each position the longest one."""
    import torch

    stand_in = {encoder: torch.zeros(1, width) for encoder, width in model.widths.items()}
    return {place.name for place in model.tokenize(prompt, dict.fromkeys(names, stand_in)).splices}


def name_warnings(model: DiffusionModel, folder: Path, name: str) -> list[str]:
    """Warnings about the name of a new embedding; ConfigError if no prompt can contain it."""
    if not has_word(model, escaped(name), name):
        message = f"No prompt can contain the name {name!r}: it has no tokens, or is BREAK. Choose another."
        raise ConfigError(message)
    warnings = about_an_ordinary_word(model, name)
    if re.search(r"\bAND\b", name):
        warnings.append(f"AND separates prompts in the WebUI, so they cannot contain {name}: use lowercase letters.")
    others = {path.stem for path in embeddings_dir.embedding_files(folder) if path.stem.casefold() != name.casefold()}
    same = sorted(each for each in others if _bare(each) == _bare(name) and _same_tokens(model, name, each))
    if same:
        warnings.append(f"Prompts cannot distinguish {name} from the existing {same[0]}: choose another name.")
    return warnings


def about_an_ordinary_word(model: DiffusionModel, name: str) -> list[str]:
    """A warning if the name consists of ordinary words."""
    if not _is_ordinary(model, name):
        return []
    what, better = ("words", name.replace(" ", "-")) if " " in name else ("word", f"my-{name}")
    return [
        f"Every prompt that contains the {what} {name} would use this embedding. Choose a name that is not a word, such as "
        f"{better}."
    ]


def _is_ordinary(model: DiffusionModel, name: str) -> bool:
    """Whether a name consists of ordinary words, so that every prompt with these words would use the embedding.

    Ordinary are words of one token, numbers, and combinations such as 3d or 1girl.
    """

    def plain(word: str) -> bool:
        letters = word.lstrip("0123456789")
        return not letters or (letters.isalpha() and len(next(iter(model.token_embeddings(letters).values()))) == 1)

    words = name.split()
    return bool(words) and all(map(plain, words))


def prompt_report(
    model: DiffusionModel, prompts: Mapping[str, str], embeddings: Mapping[str, Vectors], skipped: Sequence[Found]
) -> PromptReport:
    """Which embeddings are used in prompts, given by their labels, with warnings about likely mistakes.

    `embeddings` can be used, `skipped` are files in the folder that cannot.
    """
    used, warnings = [], []
    reasons = {each.path.stem: each.reason for each in skipped if each.path.suffix.lower() not in IMAGES}
    for what, prompt in prompts.items():
        tokenized = model.tokenize(prompt, embeddings)
        names = Counter(place.name for place in tokenized.splices)
        if names:
            used.append(f"{', '.join(names)} in the {what}")
        for name, count in names.items():
            warnings += _inside_words(what, prompt, name, count, embeddings)
        unused = _words_in(model, prompt, (each for each in reasons if each not in embeddings))
        warnings += [f"{each} in the {what} was not used: {reasons[each]}" for each in reasons if each in unused]
        near = None if names or unused else near_name(prompt, embeddings)
        if near is not None:
            warnings.append(f"Did you mean {escaped(near)} in the {what}?")
        warnings += [STRANDED.format(each, what) for each in tokenized.stranded]
        warnings += syntax_warnings(what, prompt)
    summary = f"Embeddings used: {'; '.join(used)}." if used else "No embedding was used."
    return PromptReport(summary, tuple(warnings))


def syntax_warnings(what: str, *prompts: str) -> list[str]:
    """Warnings about syntax that only the WebUI's image generation supports: here it is plain text."""
    found = {kind: example for prompt in prompts for kind, example in unsupported_syntax(prompt).items()}
    sentences = [
        f"{example} in the {what} is read as plain text: only the WebUI's image generation supports {kind.lower()}."
        for kind, example in found.items()
    ]
    comma = next((example for prompt in prompts for example in decimal_commas(prompt)), None)
    if comma is not None:
        sentences.append(
            f"{comma[0]} in the {what} is read as plain text: weights are written with a decimal point, as in {comma[1]}."
        )
    return sentences


def near_name(prompt: str, names: Iterable[str]) -> str | None:
    """The name that a prompt almost contains: with other punctuation, or with a typo of one letter."""
    bare = {_bare(each): each for each in names if _bare(each)}
    pieces = [_bare(each) for each in re.split(r"[\s,]+", prompt)]
    windows = ["".join(pieces[at : at + count]) for count in (1, 2, 3) for at in range(len(pieces) - count + 1)]
    exact = next((bare[each] for each in windows if each in bare), None)
    if exact is not None:
        return exact
    shortened: dict[str, list[str]] = defaultdict(list)  # two words that differ by a letter share some of these
    for each in bare:
        if len(each) >= LONG_ENOUGH:
            for shorter in _less_a_letter(each):
                shortened[shorter].append(each)
    longest = max(map(len, bare), default=0)
    for window in windows:
        length = len(window)
        if LONG_ENOUGH <= length <= longest + 1:
            alike = {each for shorter in _less_a_letter(window) for each in shortened.get(shorter, ())}
            if close := difflib.get_close_matches(window, alike, 1, cutoff=1 - 1 / length - 1e-6):
                return bare[close[0]]
    return None


def _less_a_letter(word: str) -> set[str]:
    """The word, and the word without each of its letters."""
    return {word, *(word[:at] + word[at + 1 :] for at in range(len(word)))}


def _inside_words(what: str, prompt: str, name: str, count: int, words: Iterable[str]) -> list[str]:
    """A warning if a name, which was found `count` times, was found within longer words."""
    if count <= len(re.findall(word_pattern(name), prompt)):
        return []
    known = {each.casefold() for each in words}
    around = re.findall(rf"(?i)[\w-]*{re.escape(escaped(name))}[\w-]*", prompt)
    longer = [each for each in dict.fromkeys(around) if each.casefold() not in known]
    return [f"{name} was used for a part of {each} in the {what}: names are also found within words." for each in longer]


def _bare(name: str) -> str:
    """The letters and digits of a name, in lowercase."""
    return "".join(each for each in name.casefold() if each.isalnum())


def _same_tokens(model: DiffusionModel, name: str, other: str) -> bool:
    return has_word(model, escaped(name), other) and has_word(model, escaped(other), name)
