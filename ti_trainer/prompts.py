"""Tokenize prompts: token ids for the text encoder, their weights, and the positions of embeddings.

This follows the WebUI 1.10.1: `(text:1.2)` sets the weight of a part, and `BREAK` starts a new chunk; an embedding is found
by its name's tokens anywhere in a part, longest name first, and takes one token per vector; long prompts are split into
chunks of 75 tokens, at a comma if there is one nearby.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from math import isfinite

from ti_trainer.errors import ConfigError

FUNCTION_WORDS = frozenset(
    "a an and at by for from in into its of on or over photo picture the to under with".split()  # noqa: SIM905 - shorter
)
NO_TEXT = "*"  # the WebUI's default initial text: vectors start from the token *, which describes nothing
CHUNK = 75
PLACEHOLDER_ID = 0  # below every end-of-text id, since some encoders pool at the highest id
COMMA_BACKTRACK = 20  # the WebUI's default: a chunk is split at a comma within the last 20 tokens
UP, DOWN = 1.1, 1 / 1.1  # weights of brackets without a number
DEEPEST = 500  # nested brackets: their weights multiply, and would overflow
BREAK = ("BREAK", -1.0)  # as a part; in the WebUI, brackets around it change the number, and then it is a word

Tokenizer = Callable[[str], list[int]]

_SYNTAX = re.compile(
    r"\\(?P<escaped>[\\()\[\]]?)"
    r"|:\s*(?P<weight>[+-]?[.\d]+)\s*\)"
    r"|(?P<bracket>[()\[\]])"
    r"|(?P<text>:|[^:\\()\[\]]+)"
)
_OTHER_SYNTAX = re.compile(
    r"\\.|(?P<open>\[)|(?P<bar>\|)|(?P<schedule>:\s*[+-]?(?:\d+\.?\d*|\.\d+)\s*\])|(?P<close>\])"
    r"|(?P<network><\w+:[^<>]*>)|(?P<combined>\bAND\b)",
    re.DOTALL,
)
_DECIMAL_COMMA = re.compile(r":\s*(?P<whole>[+-]?\d+),(?P<part>\d+)\s*\)")


@dataclass(frozen=True)
class Splice:
    """The vectors of `name` start at `offset` in a chunk, counted with the beginning-of-text token."""

    chunk: int
    offset: int
    name: str


@dataclass(frozen=True)
class TokenizedPrompt:
    """At least one chunk of 77 ids, the positions of embeddings, and the weights of the ids; none if all are 1."""

    chunks: tuple[tuple[int, ...], ...]
    splices: tuple[Splice, ...]
    weights: tuple[tuple[float, ...], ...] = ()

    @property
    def stranded(self) -> tuple[str, ...]:
        """Embeddings whose tokens moved to the next chunk without their vectors, as happens in the WebUI after a comma."""
        names = (each.name for each in self.splices if self.chunks[each.chunk][each.offset] != PLACEHOLDER_ID)
        return tuple(dict.fromkeys(names))


@dataclass(frozen=True)
class PromptTokenizer:
    """Splits prompts into chunks. `tokenize` returns ids without special tokens; `num_vectors` is by embedding name."""

    tokenize: Tokenizer
    begin_id: int
    end_id: int
    pad_id: int
    comma_id: int
    num_vectors: Mapping[str, int]

    def __post_init__(self) -> None:
        """Raise ConfigError for embeddings that are too long for a chunk."""
        for name, count in self.num_vectors.items():
            if count > CHUNK:
                message = f"The embedding {name!r} has {count} vectors; a prompt has room for {CHUNK} at a time."
                raise ConfigError(message)

    def __call__(self, prompt: str) -> TokenizedPrompt:
        """Tokenize one prompt; ConfigError for a weight that is not a number."""
        rows = _Rows(self.comma_id)
        for part in weighted_parts(prompt):
            if part == BREAK:
                rows.begin()
                continue
            for first_id, name in self._items(self.tokenize(part[0])):
                rows.add(first_id, part[1], name, 1 if name is None else self.num_vectors[name])
        done = rows.done()
        weights = tuple((1.0, *row.weights, *[1.0] * (CHUNK + 1 - len(row.ids))) for row in done)
        return TokenizedPrompt(
            tuple(self._padded(row.ids) for row in done),
            tuple(Splice(number, offset, name) for number, row in enumerate(done) for offset, name in row.splices),
            weights if any(each != 1 for row in weights for each in row) else (),
        )

    def padding(self) -> tuple[int, ...]:
        """The chunk of an empty prompt, with which shorter prompts of a batch are padded."""
        return self._padded([])

    @cached_property
    def _names(self) -> dict[int, list[tuple[list[int], str]]]:
        """Names with their tokens, by the first token, longest first."""
        found: dict[int, list[tuple[list[int], str]]] = defaultdict(list)
        for name in self.num_vectors:
            if ids := self.tokenize(name):
                found[ids[0]].append((ids, name))
        return {first: sorted(pairs, key=lambda pair: -len(pair[0])) for first, pairs in found.items()}

    def _items(self, ids: list[int]) -> Iterator[tuple[int, str | None]]:
        """Each id with None, but for the ids of a name only the first one with the name."""
        position = 0
        while position < len(ids):
            known = self._names.get(ids[position], ())
            length, name = next(
                ((len(key), name) for key, name in known if ids[position : position + len(key)] == key), (1, None)
            )
            yield ids[position], name
            position += length

    def _padded(self, ids: list[int]) -> tuple[int, ...]:
        """77 ids: SD 1.x pads with the end-of-text token, SD 2.x with zeros after the first one."""
        row = [self.begin_id, *ids, self.end_id]
        if self.pad_id != self.end_id:
            row = row[: row.index(self.end_id) + 1]
        return (*row, *[self.pad_id] * (CHUNK + 2 - len(row)))


@dataclass
class _Row:
    """An unfinished chunk. Offsets in `splices` are counted with the beginning-of-text token."""

    ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    splices: list[tuple[int, str]] = field(default_factory=list)


class _Rows:
    """The unfinished chunks of a prompt."""

    def __init__(self, comma_id: int) -> None:
        self._comma_id, self._comma = comma_id, -1  # its last position in the current chunk
        self._rows = [_Row()]

    def begin(self, ids: list[int] | None = None, weights: list[float] | None = None) -> None:
        """Start the next chunk with these ids."""
        self._rows.append(_Row(ids or [], weights or []))
        self._comma = -1

    def add(self, first_id: int, weight: float, name: str | None, length: int) -> None:
        """Add an id, or an embedding whose name starts with it."""
        row = self._rows[-1]
        if first_id == self._comma_id:
            self._comma = len(row.ids)
        elif len(row.ids) == CHUNK and self._comma != -1 and CHUNK - self._comma <= COMMA_BACKTRACK:
            # As in the WebUI, vectors stay in the padding of this chunk, and their placeholders move on without them.
            end = self._comma + 1
            self.begin(row.ids[end:], row.weights[end:])
            del row.ids[end:], row.weights[end:]
        if len(self._rows[-1].ids) + length > CHUNK:
            self.begin()
        row = self._rows[-1]
        if name is not None:
            row.splices.append((len(row.ids) + 1, name))
        row.ids += [first_id] if name is None else [PLACEHOLDER_ID] * length
        row.weights += [weight] * length

    def done(self) -> list[_Row]:
        """All chunks, at least one; no empty one after a BREAK at the end."""
        return self._rows if self._rows[-1].ids or len(self._rows) == 1 else self._rows[:-1]


def weighted_parts(prompt: str) -> list[tuple[str, float]]:
    """The parts of a prompt, at least one, with their weights; `BREAK` is a separate part.

    `(text)` has the weight 1.1, `[text]` 1 / 1.1, and `(text:1.2)` the given one; weights of nested brackets multiply. A
    bracket that is not closed extends to the end; one that was not opened, or is after a backslash, is text. ConfigError for
    a weight that is not a number, on which the WebUI fails.
    """
    parts: list[tuple[str, float]] = []
    begun: dict[str, list[int]] = {"(": [], "[": []}

    def weigh(bracket: str, factor: float) -> None:
        start = begun[bracket].pop()
        parts[start:] = [(text, weight * factor) for text, weight in parts[start:]]

    for found in _SYNTAX.finditer(prompt):
        whole, bracket = found[0], found["bracket"]
        if found["escaped"] is not None:
            parts.append((found["escaped"], 1.0))  # a backslash before anything else is dropped
        elif bracket in begun:
            begun[bracket].append(len(parts))
            if len(begun[bracket]) > DEEPEST:
                message = f"The prompt {_shown(prompt)}: found more than {DEEPEST} nested brackets, expected a few."
                raise ConfigError(message)
        elif whole.endswith(")") and begun["("]:
            weigh("(", UP if bracket else _number(found["weight"], prompt))
        elif bracket == "]" and begun["["]:
            weigh("[", DOWN)
        else:
            parts += _apart_at_breaks(whole)
    for bracket, factor in (("(", UP), ("[", DOWN)):
        while begun[bracket]:
            weigh(bracket, factor)
    together = [("".join(text for text, _ in same), weight) for weight, same in groupby(parts, key=lambda part: part[1])]
    return together or [("", 1.0)]


def content_words(prompt: str) -> str:
    """The words of a prompt that name something, without its syntax; the prompt itself if there are none."""
    words = [word for part in weighted_parts(prompt) if part != BREAK for word in part[0].replace(",", " ").split()]
    return " ".join(word for word in words if word.lower() not in FUNCTION_WORDS) or prompt


def escaped(name: str) -> str:
    """A text with escaped brackets and backslashes, which would be read as emphasis in a prompt."""
    return re.sub(r"[\\()\[\]]", r"\\\g<0>", name)


def unsupported_syntax(prompt: str) -> dict[str, str]:
    """Syntax in a prompt that only the WebUI's image generation supports, with an example of each kind."""
    found: dict[str, str] = {}
    begun: list[tuple[int, bool]] = []  # position of a [, and whether a | followed
    for each in _OTHER_SYNTAX.finditer(prompt):
        kind = each.lastgroup
        if kind == "network":
            found.setdefault("Extra networks", each[0])
        elif kind == "combined":
            found.setdefault("Combined prompts", each[0])
        elif kind == "open":
            begun.append((each.start(), False))
        elif kind == "bar" and begun:
            begun[-1] = (begun[-1][0], True)
        elif kind in ("close", "schedule") and begun:
            start, alternates = begun.pop()
            if alternates or kind == "schedule":
                kind = "Alternating words" if alternates else "Scheduled words"
                found.setdefault(kind, prompt[start : each.end()])
    return found


def decimal_commas(prompt: str) -> Iterator[tuple[str, str]]:
    """Likely weights with a decimal comma, which are plain text, and the correct form: (hat:1,3), (hat:1.3)."""
    for found in _DECIMAL_COMMA.finditer(prompt):
        begin = prompt.rfind("(", 0, found.start())
        if begin >= 0 and prompt[begin - 1 : begin] != "\\":
            text = prompt[begin : found.start()]
            yield text + found[0], f"{text}:{found['whole']}.{found['part']})"


def _apart_at_breaks(text: str) -> Iterator[tuple[str, float]]:
    """Split a text without brackets at each BREAK, and strip the white space around it."""
    pieces = re.split(r"\bBREAK\b", text)
    for number, piece in enumerate(pieces):
        if number:
            yield BREAK
            piece = piece.lstrip()
        yield (piece if number == len(pieces) - 1 else piece.rstrip()), 1.0


def _number(text: str, prompt: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("inf")
    if isfinite(number):
        return number
    message = (
        f"The prompt {_shown(prompt)}: found {text}), expected a number before the bracket, as in (text:1.2). For "
        r"literal brackets, write \( and \)."
    )
    raise ConfigError(message)


def _shown(prompt: str) -> str:
    return repr(prompt if len(prompt) <= 80 else f"{prompt[:77]}...")
