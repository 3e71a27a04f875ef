"""A stand-in for the WebUI's text encoder wrapper (`modules/sd_hijack_clip.py`), written by us to behave like it.

What CI cannot have is the WebUI itself; `check_in_webui.py` compares with the real one. Chunks of 75 tokens, emphasis as
`(text:1.2)`, embeddings found by their tokens and put among the token embeddings at `hijack.fixes`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

CHUNK = 75


class TokenTable(nn.Module):
    """Token embeddings with vectors in place of some, once for each time that `fixes` is set."""

    def __init__(self, wrapped: nn.Embedding, hijack: Any) -> None:
        super().__init__()
        self.wrapped, self.hijack = wrapped, hijack

    def forward(self, ids: Tensor) -> Tensor:
        fixes, self.hijack.fixes = self.hijack.fixes, None
        rows = []
        for row, places in zip(self.wrapped(ids), fixes or [()] * len(ids), strict=True):
            for offset, embedding in places:
                end = offset + 1 + len(embedding.vec)
                row = torch.cat([row[: offset + 1], embedding.vec, row[end:]])
            rows.append(row)
        return torch.stack(rows)


class CondStage(nn.Module):
    """Stands where the WebUI puts its FrozenCLIPEmbedderWithCustomWords."""

    def __init__(self, wrapped: Any) -> None:
        super().__init__()
        self.wrapped = wrapped
        self.hijack = SimpleNamespace(
            fixes=None,
            comments=[],
            extra_generation_params={},
            embedding_db=SimpleNamespace(word_embeddings={}, ids_lookup={}),
        )
        embeddings = wrapped.transformer.text_model.embeddings
        embeddings.token_embedding = TokenTable(embeddings.token_embedding, self.hijack)
        self.id_start, self.id_end = wrapped.tokenizer.bos_token_id, wrapped.tokenizer.eos_token_id
        self.id_pad = self.id_end
        self.lines_cut: list[str] = []

    def register(self, embedding: Any) -> None:
        database = self.hijack.embedding_db
        database.word_embeddings[embedding.name] = embedding
        ids = self.tokenize([embedding.name])[0]
        database.ids_lookup.setdefault(ids[0], []).append((ids, embedding))

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        return self.wrapped.tokenizer(list(texts), truncation=False, add_special_tokens=False)["input_ids"]

    def tokenize_line(self, line: str) -> tuple[list[Any], int]:
        self.lines_cut.append(line)
        chunks = [SimpleNamespace(tokens=[], multipliers=[], fixes=[])]
        for text, weight in _parts(line):
            ids, position = self.tokenize([text])[0], 0
            while position < len(ids):
                key, embedding = self._embedding_at(ids, position)
                new = [0] * embedding.vectors if embedding else [ids[position]]
                if len(chunks[-1].tokens) + len(new) > CHUNK:
                    chunks.append(SimpleNamespace(tokens=[], multipliers=[], fixes=[]))
                if embedding:
                    chunks[-1].fixes.append((len(chunks[-1].tokens), embedding))
                chunks[-1].tokens += new
                chunks[-1].multipliers += [weight] * len(new)
                position += len(key)
        count = sum(len(chunk.tokens) for chunk in chunks)
        for chunk in chunks:
            fill = CHUNK - len(chunk.tokens)
            chunk.tokens = [self.id_start, *chunk.tokens, *[self.id_end] * (fill + 1)]
            chunk.multipliers = [1.0, *chunk.multipliers, *[1.0] * (fill + 1)]
        return chunks, count

    def emphasize(self, hidden: Tensor, ids: Sequence[int], multipliers: Sequence[float]) -> Tensor:
        weighed = hidden * torch.tensor(multipliers)[None, :, None]
        return weighed * (hidden.mean() / weighed.mean())

    def forward(self, texts: Sequence[str]) -> Tensor:
        """One text at a time; leaves its traces, as the WebUI does."""
        (text,) = texts
        hidden = []
        for chunk in self.tokenize_line(text)[0]:
            self.hijack.fixes = [chunk.fixes]
            states = self.wrapped.transformer(input_ids=torch.tensor([chunk.tokens])).last_hidden_state
            hidden.append(self.emphasize(states, chunk.tokens, chunk.multipliers))
        self.hijack.extra_generation_params["TI hashes"] = "some"
        return torch.cat(hidden, 1)

    def _embedding_at(self, ids: list[int], position: int) -> tuple[list[int], Any]:
        for key, embedding in self.hijack.embedding_db.ids_lookup.get(ids[position], ()):
            if ids[position : position + len(key)] == key:
                return key, embedding
        return [ids[position]], None


def _parts(line: str) -> list[tuple[str, float]]:
    found = re.findall(r"\(([^():]+):([\d.]+)\)|([^()]+)", line)
    return [(weighed, float(weight)) if weighed else (plain, 1.0) for weighed, weight, plain in found]
