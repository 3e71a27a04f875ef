"""A prompt as the model sees it: chunks of tokens with ids and weights, embeddings, and names that are not loaded."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from ti_trainer.formats.embeddings_dir import Found
from ti_trainer.formats.naming import prompt_report
from ti_trainer.prompts import BREAK, PLACEHOLDER_ID, TokenizedPrompt, weighted_parts
from ti_trainer.wording import counted
from ti_trainer.workbench.inspect import shown_token

if TYPE_CHECKING:
    from ti_trainer.model import DiffusionModel, Vectors

PIECES = 3  # tokens: words of fewer are common enough to mean something
_ESCAPED = re.compile(r"\\[\\()\[\]]")
_MARKED = re.compile(r"<([\w\-. ]+)>|\bembedding:([\w\-.]+)")  # as diffusers and ComfyUI write embeddings
_WORD = re.compile(r"[A-Za-z][\w\-.]*")
_NUMBERED = re.compile(r"(?=.*\d)(?=.*[A-Za-z]{3})[A-Za-z][\w\-.]*")
_WELL_KNOWN = {
    *("easynegative", "verybadimagenegative", "badprompt", "bad_prompt", "bad-artist", "bad-artist-anime", "badpic"),
    *("fastnegative", "deepnegative"),
}


@dataclass(frozen=True)
class Piece:
    """A token, or an embedding, which takes `count` tokens; `token_id` is None for an embedding."""

    text: str
    token_id: int | None
    weight: float = 1.0
    count: int = 1


@dataclass(frozen=True)
class PromptView:
    """`chunks` are without special tokens and padding; `notes` are facts, `warnings` likely mistakes."""

    chunks: tuple[tuple[Piece, ...], ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of tokens in each chunk, of 75."""
        return tuple(sum(piece.count for piece in chunk) for chunk in self.chunks)


def view(model: DiffusionModel, prompt: str, embeddings: Mapping[str, Vectors], skipped: Sequence[Found] = ()) -> PromptView:
    """Tokenize a prompt with these embeddings; `skipped` are files that cannot be used. ConfigError for a wrong weight."""
    tokenized = model.tokenize(prompt, embeddings)
    report = prompt_report(model, {"prompt": prompt}, embeddings, skipped)
    used = {place.name for place in tokenized.splices}
    reported = " ".join(report.warnings).casefold()
    unknown = [each for each in _not_loaded(model, prompt, used) if f"{each} in the prompt".casefold() not in reported]
    warnings = [*report.warnings, *(_about_unknown(model, each) for each in unknown)]
    return PromptView(
        tuple(_pieces(model, tokenized, number) for number in range(len(tokenized.chunks))),
        (report.used, *_notes(prompt)),
        tuple(warnings),
    )


def _pieces(model: DiffusionModel, tokenized: TokenizedPrompt, number: int) -> tuple[Piece, ...]:
    """A chunk's tokens and embeddings in their order, without the special tokens around them."""
    ids = tokenized.chunks[number]
    weights = tokenized.weights[number] if tokenized.weights else (1.0,) * len(ids)
    starts = {place.offset: place.name for place in tokenized.splices if place.chunk == number}
    found, at, end = [], 1, _end_of(ids)
    later = sorted(starts)
    while at < end:
        if at not in starts:
            found.append(Piece(shown_token(model.token_piece(ids[at])) or f"#{ids[at]}", ids[at], weights[at]))
            at += 1
            continue
        until = next((each for each in later if each > at), end)
        count = sum(1 for _ in takewhile(lambda each: each == PLACEHOLDER_ID, ids[at:until]))
        # 0 at the end of a chunk whose placeholders moved on: `prompt_report` warns of that
        found.append(Piece(starts[at], None, weights[at], max(1, count)))
        at += max(1, count)
    return tuple(found)


def _end_of(ids: Sequence[int]) -> int:
    """The place of the first end-of-text token after the text; its id is the highest, and padding may be more of them."""
    end = max(ids)
    place = max(at for at, each in enumerate(ids) if each == end)
    while place > 1 and ids[place - 1] == end:
        place -= 1
    return place


def _notes(prompt: str) -> list[str]:
    """Sentences about BREAK and escapes."""
    breaks = sum(part == BREAK for part in weighted_parts(prompt))
    notes = [f"{counted(breaks, 'BREAK')}: each starts a new chunk."] if breaks else []
    if escapes := Counter(_ESCAPED.findall(prompt)):
        listed = ", ".join(f"{each} ({count})" if count > 1 else each for each, count in escapes.items())
        notes.append(f"Escaped, so that they are text and no weights: {listed}.")
    return notes


def _not_loaded(model: DiffusionModel, prompt: str, used: set[str]) -> list[str]:
    """Words that look like names of embeddings, but are none that is loaded."""
    known = {each.casefold() for each in used}
    text = " ".join(part for part, _ in weighted_parts(prompt) if (part, _) != BREAK)
    marked = [first or second for first, second in _MARKED.findall(text)]
    rest = re.sub(r"<[^<>]*>", " ", text)
    words = [word.rstrip(".-") for word in _WORD.findall(rest)]
    likely = [word for word in words if word.casefold() in _WELL_KNOWN or _looks_like_a_name(model, word)]
    found = dict.fromkeys([*marked, *likely])
    return [each for each in found if each.casefold() not in known and not any(name in each.casefold() for name in known)]


def _looks_like_a_name(model: DiffusionModel, word: str) -> bool:
    """Whether a word begins with a letter, has a digit, and is in many pieces, as badhandv4 and no usual word is."""
    return bool(_NUMBERED.fullmatch(word)) and _tokens_of(model, word) >= PIECES


def _tokens_of(model: DiffusionModel, word: str) -> int:
    return len(next(iter(model.token_embeddings(word).values())))


def _about_unknown(model: DiffusionModel, word: str) -> str:
    tokens = counted(_tokens_of(model, word), "plain token")
    return (
        f"{word} looks like the name of an embedding, but none of this name is loaded: the model reads it as {tokens}. "
        "Put its file into the embeddings folder, or check its spelling."
    )
