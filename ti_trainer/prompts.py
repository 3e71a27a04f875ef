"""From a prompt to the token ids that a text encoder is fed, and where in them an embedding's vectors go.

As the WebUI does it: an embedding is found by its name's tokens anywhere in the prompt, longest name first, and takes one
token a vector; long prompts are cut into chunks of 75 tokens, at a comma where one is near. Knows nothing of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ti_trainer.errors import ConfigError

CHUNK = 75
PLACEHOLDER_ID = 0  # below every end-of-text id, so that encoders which pool at the highest id are not misled
COMMA_BACKTRACK = 20  # the WebUI's default: how far back a chunk may be cut at a comma

Tokenizer = Callable[[str], list[int]]


@dataclass(frozen=True)
class Splice:
    """`name`'s vectors stand at `offset` of chunk `chunk`, counted with the beginning-of-text token."""

    chunk: int
    offset: int
    name: str


@dataclass(frozen=True)
class TokenizedPrompt:
    """Chunks of 77 ids each, at least one, and the places of embeddings in them."""

    chunks: tuple[tuple[int, ...], ...]
    splices: tuple[Splice, ...]


@dataclass(frozen=True)
class PromptTokenizer:
    """Turns prompts into chunks. `tokenize` gives ids without special tokens; `num_vectors` is by embedding name."""

    tokenize: Tokenizer
    begin_id: int
    end_id: int
    pad_id: int
    comma_id: int
    num_vectors: Mapping[str, int]

    def __post_init__(self) -> None:
        """Refuse embeddings that fit into no prompt; ConfigError."""
        for name, count in self.num_vectors.items():
            if count > CHUNK:
                message = f"The embedding {name!r} has {count} vectors: a prompt has room for {CHUNK} at a time."
                raise ConfigError(message)

    def __call__(self, prompt: str) -> TokenizedPrompt:
        """Split one prompt. Embedding names are matched as the WebUI does, by tokens."""
        chunks: list[list[int]] = [[]]
        splices: list[Splice] = []
        comma = -1  # where the last one stands in the current chunk
        for item in self._items(prompt):
            length = self.num_vectors[item] if isinstance(item, str) else 1
            while len(chunks[-1]) + length > CHUNK:
                near = (
                    comma != -1 and item != self.comma_id and len(chunks[-1]) == CHUNK and CHUNK - comma <= COMMA_BACKTRACK
                )
                chunks.append(_cut(chunks, splices, comma + 1) if near else [])
                comma = -1
            if isinstance(item, str):
                splices.append(Splice(len(chunks) - 1, len(chunks[-1]) + 1, item))
                chunks[-1].extend([PLACEHOLDER_ID] * length)
            else:
                comma = len(chunks[-1]) if item == self.comma_id else comma
                chunks[-1].append(item)
        return TokenizedPrompt(tuple(self._padded(chunk) for chunk in chunks), tuple(splices))

    def padding(self) -> tuple[int, ...]:
        """The chunk of an empty prompt: what shorter prompts of a batch are filled up with."""
        return self._padded([])

    def _items(self, prompt: str) -> list[int | str]:
        ids = self.tokenize(prompt)
        names = sorted(((self.tokenize(name), name) for name in self.num_vectors), key=lambda each: -len(each[0]))
        items: list[int | str] = []
        position = 0
        while position < len(ids):
            found = next(((key, name) for key, name in names if key and ids[position : position + len(key)] == key), None)
            items.append(found[1] if found else ids[position])
            position += len(found[0]) if found else 1
        return items

    def _padded(self, ids: list[int]) -> tuple[int, ...]:
        """77 ids: SD 1.x fills up with the end of text, SD 2.x with zeros after it."""
        fill = [self.pad_id] * (CHUNK - len(ids))
        return (self.begin_id, *ids, self.end_id, *fill)


def _cut(chunks: list[list[int]], splices: list[Splice], end: int) -> list[int]:
    """Take what follows `end` off the last chunk, embeddings too, as the beginning of the next."""
    number, moved = len(chunks) - 1, chunks[-1][end:]
    del chunks[-1][end:]
    for index, splice in enumerate(splices):
        if splice.chunk == number and splice.offset > end:
            splices[index] = Splice(number + 1, splice.offset - end, splice.name)
    return moved
