"""Encodes prompts with the WebUI's own text encoders; the result is differentiable in the embeddings' vectors.

The WebUI splits a prompt into chunks and weights its parts (`stage.tokenize_line`), and replaces token embeddings by vectors
(`hijack.fixes`). The settings are those at creation, and the WebUI's lists of used embeddings are not changed. This module
does not import the WebUI's.

B prompts of up to n chunks of T = 77 tokens, V vectors, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ti_trainer.embedding import encoder_of_width
from ti_trainer.errors import ConfigError
from ti_trainer.functional.transfer import sent
from ti_trainer.hosts.webui.model_spec import SDXL_ENCODERS, is_sdxl, text_stages
from ti_trainer.model import Vectors
from ti_trainer.prompts import CHUNK, Splice, TokenizedPrompt, weighted_parts

REMEMBERED = 4096  # prompts; with shuffled tags nearly every prompt is new
Emphasize = Callable[[Tensor, Sequence[int], Sequence[float]], Tensor]
Layers = Callable[[Tensor], tuple[Tensor, "Tensor | None"]]  # ids (B, T) -> hidden (B, T, D), and pooled (B, width) if any


@dataclass(frozen=True)
class _Placeholder:
    """Stands for an embedding while the WebUI splits a prompt; `vectors` is its name for their number."""

    name: str
    vectors: int


@dataclass(frozen=True)
class _Chunk:
    ids: tuple[int, ...]
    multipliers: tuple[float, ...]
    fixes: tuple[tuple[int, Any], ...]  # offset (without the first token), and the WebUI's embedding or a _Placeholder


@contextmanager
def registered(stage: Any, embeddings: Mapping[str, Any]) -> Iterator[None]:
    """Add embeddings to the WebUI's database, then restore it. Only while holding the queue."""
    database = stage.hijack.embedding_db
    names, lookup = _with(stage, stage, embeddings)
    before = database.word_embeddings, database.ids_lookup
    database.word_embeddings, database.ids_lookup = names, lookup
    try:
        yield
    finally:
        if any(names.get(name) is not embedding for name, embedding in embeddings.items()):
            for old, new in zip(before, (names, lookup), strict=True):  # its folder was read again: keep that
                old.clear()
                old.update(new)
        database.word_embeddings, database.ids_lookup = before


def _with(stage: Any, finder: Any, embeddings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[int, Any]]:
    """The WebUI's tables of embeddings by name and by first token, with these before its own of the same tokens.

    `finder` is the encoder whose tokens find embeddings in a prompt: the first of two.
    """
    database = stage.hijack.embedding_db
    names = {**database.word_embeddings, **embeddings}
    of_host = dict(database.ids_lookup)  # another thread may read the folder again
    lookup = {first: [each for each in pairs if each[1].name not in embeddings] for first, pairs in of_host.items()}
    for name, embedding in embeddings.items():
        ids = finder.tokenize([name])[0]
        if not ids:
            message = f"The name {name!r} has no tokens in this text encoder: choose another name."
            raise ConfigError(message)
        pairs = [(ids, embedding), *lookup.get(ids[0], ())]
        lookup[ids[0]] = sorted(pairs, key=lambda pair: len(pair[0]), reverse=True)
    return names, lookup


def _view(stage: Any, finder: Any, embeddings: Mapping[str, Any]) -> Any:
    """The encoder with its own copy of the database, so that prompts can be split while an image is generated."""
    view = copy(stage)
    view.hijack = copy(stage.hijack)
    view.hijack.embedding_db = database = copy(stage.hijack.embedding_db)
    database.word_embeddings, database.ids_lookup = _with(stage, finder, embeddings)
    return view


@dataclass
class PromptEncoder:
    """One of the WebUI's text encoders; `encoder` is its key in an embedding, and `finder` the model's first encoder.

    `emphasize(hidden (1, T, D), ids, multipliers)` applies the weights of a prompt's parts.
    """

    encoder: str
    stage: Any
    finder: Any
    layers: Layers
    device: torch.device
    emphasize: Emphasize
    _split: dict[tuple[object, ...], tuple[tuple[_Chunk, ...], Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Find the table of token embeddings."""
        self._table = _table(self.stage)
        self.width = self._table.embedding_dim

    def tokenize(self, prompt: str, embeddings: Mapping[str, Vectors]) -> TokenizedPrompt:
        """A prompt's chunks; the WebUI's own embeddings in it are splices as well."""
        chunks, _ = self._chunks(prompt, embeddings)
        splices = [
            Splice(number, offset + 1, each.name) for number, chunk in enumerate(chunks) for offset, each in chunk.fixes
        ]
        weights = tuple(chunk.multipliers for chunk in chunks) if any(map(_is_weighted, chunks)) else ()
        return TokenizedPrompt(tuple(chunk.ids for chunk in chunks), tuple(splices), weights)

    def token_text(self, token_id: int) -> str:
        """The text of a token, without the mark at the end of a word."""
        return self.token_piece(token_id).removesuffix("</w>")

    def token_piece(self, token_id: int) -> str:
        """A token as the vocabulary spells it; "" for an unknown id."""
        tokenizer = getattr(self.stage.wrapped, "tokenizer", None)
        if tokenizer is None:
            return _open_clip_pieces().get(token_id, "")
        return tokenizer.convert_ids_to_tokens(token_id) or "" if 0 <= token_id < len(tokenizer) else ""

    @property
    def token_table(self) -> Tensor:
        """(N, D): the embeddings of all tokens."""
        return self._table.weight.detach()

    def token_embeddings(self, text: str) -> Tensor:
        """(m, D) float32 on the CPU."""
        return self._table.weight[self.stage.tokenize([text])[0]].detach().float().cpu()

    def __call__(self, prompts: Sequence[str], embeddings: Mapping[str, Vectors]) -> tuple[Tensor, Tensor | None]:
        """Hidden states (B, n T, D), and the pooled states of the first chunks (B, width) if the encoder pools.

        Each prompt is weighted on its own, as when one image is generated. Only while holding the queue.
        """
        cut = [self._chunks(prompt, embeddings) for prompt in prompts]
        longest = max(len(chunks) for chunks, _ in cut)
        empty = self._chunks("", {})
        cut = [_padded(each, empty, longest) for each in cut]
        vectors = {
            name: SimpleNamespace(name=name, vec=each[self.encoder].to(self.device)) for name, each in embeddings.items()
        }
        chunks = [chunk for each, _ in cut for chunk in each]
        self.stage.hijack.fixes = [
            [(offset, vectors[each.name] if isinstance(each, _Placeholder) else each) for offset, each in chunk.fixes]
            for chunk in chunks
        ]
        try:
            hidden, pooled = self.layers(torch.cat([ids for _, ids in cut]))  # (B n, T, D), (B n, width)
        finally:
            self.stage.hijack.fixes = None
        if any(map(_is_weighted, chunks)):
            hidden = torch.cat([self._weighted(row[None], chunk) for row, chunk in zip(hidden, chunks, strict=True)])
        hidden = hidden.reshape(len(prompts), -1, hidden.shape[-1])
        return hidden, None if pooled is None else pooled[::longest]

    def _weighted(self, hidden: Tensor, chunk: _Chunk) -> Tensor:
        return self.emphasize(hidden, chunk.ids, chunk.multipliers) if _is_weighted(chunk) else hidden

    def _chunks(self, prompt: str, embeddings: Mapping[str, Vectors]) -> tuple[tuple[_Chunk, ...], Tensor]:
        """A prompt's chunks, and their ids (n, T) on the device."""
        counts = {name: len(vectors[self.encoder]) for name, vectors in embeddings.items()}
        key = (prompt, *counts.items())
        cut = self._split.get(key)  # read once: another thread may clear it at any time
        if cut is None:
            _check_counts(counts)
            chunks = tuple(self._read(chunk) for chunk in self._split_by_host(prompt, counts))
            cut = chunks, sent(torch.tensor([chunk.ids for chunk in chunks]), self.device)
            if len(self._split) >= REMEMBERED:
                self._split.clear()
            self._split[key] = cut
        return cut

    def _split_by_host(self, prompt: str, counts: Mapping[str, int]) -> Sequence[Any]:
        view = _view(self.stage, self.finder, {name: _Placeholder(name, count) for name, count in counts.items()})
        try:
            return view.tokenize_line(prompt)[0]
        except ValueError:
            weighted_parts(prompt)  # raises a clear error where the WebUI does not
            raise

    def _read(self, chunk: Any) -> _Chunk:
        """The WebUI's chunk; SD 2.x pads with another id than the end of text."""
        ids, end, pad = list(chunk.tokens), self.stage.id_end, self.stage.id_pad
        if end != pad:
            first = ids.index(end) + 1
            ids[first:] = [pad] * (len(ids) - first)
        return _Chunk(tuple(ids), tuple(chunk.multipliers), tuple((offset, each) for offset, each in chunk.fixes))


def prompt_encoders(
    sd_model: Any, device: torch.device, emphasize: Emphasize, clip_skip: int = 1, *, clip_l_skip: bool = False
) -> tuple[PromptEncoder, ...]:
    """One for each text encoder of a model that has a spec.

    `clip_skip` applies to SD 1.x, and to SDXL's CLIP-L if `clip_l_skip`; other encoders were trained on one layer. It is a
    parameter because the WebUI's setting may change during a run. ConfigError if the encoder has fewer layers.
    """
    stages = text_stages(sd_model)

    def encoder(stage: Any) -> PromptEncoder:
        name = (
            SDXL_ENCODERS[type(stage.wrapped).__name__]
            if is_sdxl(sd_model)
            else encoder_of_width(_table(stage).embedding_dim)
        )
        if "OpenCLIP" in type(stage.wrapped).__name__:  # in forks too, where its `transformer` is a CLIP
            layers = _open_clip(stage)
        elif not is_sdxl(sd_model):
            layers = _clip(stage, None if _checked(stage, clip_skip) == 1 else -clip_skip, normalised=True)
        elif clip_l_skip:
            layers = _clip(stage, -_checked(stage, clip_skip))
        else:
            layers = _clip(stage, None if stage.wrapped.layer == "last" else stage.wrapped.layer_idx)
        return PromptEncoder(name, stage, stages[0], layers, device, emphasize)

    return tuple(encoder(stage) for stage in stages)


def _clip(stage: Any, index: int | None, *, normalised: bool = False) -> Layers:
    """CLIP's hidden states with this index, normalised if asked for; None: its output."""
    transformer = stage.wrapped.transformer

    def run(ids: Tensor) -> tuple[Tensor, None]:
        if index is None:
            return transformer(input_ids=ids).last_hidden_state, None
        hidden = transformer(input_ids=ids, output_hidden_states=True).hidden_states[index]
        return transformer.text_model.final_layer_norm(hidden) if normalised else hidden, None

    return run


def _open_clip(stage: Any) -> Layers:
    """OpenCLIP's hidden states of the layer in the model's configuration."""

    def run(ids: Tensor) -> tuple[Tensor, Tensor | None]:
        hidden = stage.encode_with_transformers(ids)
        return hidden, getattr(hidden, "pooled", None)

    return run


def _checked(stage: Any, clip_skip: int) -> int:
    layers = stage.wrapped.transformer.config.num_hidden_layers
    if not 1 <= clip_skip <= layers:
        message = (
            f"Clip skip: found {clip_skip}, expected 1 to {layers}, the layers of this model's text encoder. "
            "Lower it in Settings, Stable Diffusion."
        )
        raise ConfigError(message, "clip_skip")
    return clip_skip


def _table(stage: Any) -> nn.Embedding:
    """The token embeddings: the table with the most rows."""
    tables = (each for each in stage.modules() if isinstance(each, nn.Embedding))
    return max(tables, key=lambda each: each.num_embeddings)


def _open_clip_pieces() -> Mapping[int, str]:
    from open_clip import tokenizer  # installed by the WebUI

    return tokenizer._tokenizer.decoder


def _padded(cut: tuple[tuple[_Chunk, ...], Tensor], empty: tuple[tuple[_Chunk, ...], Tensor], count: int) -> Any:
    missing = count - len(cut[0])
    return (cut[0] + empty[0] * missing, torch.cat([cut[1], *[empty[1]] * missing])) if missing else cut


def _is_weighted(chunk: _Chunk) -> bool:
    return any(each != 1 for each in chunk.multipliers)


def _check_counts(counts: Mapping[str, int]) -> None:
    for name, count in counts.items():
        if count > CHUNK:
            message = f"The embedding {name!r} has {count} vectors: a prompt has room for {CHUNK} at a time."
            raise ConfigError(message)
