"""Prompts through the WebUI's own text encoders, with our words' vectors spliced in and a gradient to them.

The host cuts a prompt into chunks and weighs its parts (`stage.tokenize_line`), and puts vectors among the token
embeddings (`hijack.fixes`); here its settings are those of one moment, and nothing is left in its lists of what was used.
Knows none of its modules: whoever makes a PromptEncoder hands over what it needs.

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
from ti_trainer.hosts.webui.model_spec import SDXL_ENCODERS, is_sdxl, text_stages
from ti_trainer.model import Vectors
from ti_trainer.prompts import CHUNK, Splice, TokenizedPrompt, weighted_parts

REMEMBERED = 4096  # prompts; shuffled tags make nearly every one a new one
Emphasize = Callable[[Tensor, Sequence[int], Sequence[float]], Tensor]
Layers = Callable[[Tensor], tuple[Tensor, "Tensor | None"]]  # ids (B, T) -> hidden (B, T, D), and pooled (B, width) if any


@dataclass(frozen=True)
class _Word:
    """Stands for a word of ours while the host cuts a prompt; `vectors` is what it calls their number."""

    name: str
    vectors: int


@dataclass(frozen=True)
class _Chunk:
    ids: tuple[int, ...]
    multipliers: tuple[float, ...]
    fixes: tuple[tuple[int, Any], ...]  # offset without the beginning-of-text token, and the host's embedding or a _Word


@contextmanager
def registered(stage: Any, embeddings: Mapping[str, Any]) -> Iterator[None]:
    """The host's database knows these embeddings too; afterwards it is as it was. Only while nobody else uses the host."""
    database = stage.hijack.embedding_db
    names, lookup = _with(stage, stage, embeddings)
    before = database.word_embeddings, database.ids_lookup
    database.word_embeddings, database.ids_lookup = names, lookup
    try:
        yield
    finally:
        if any(names.get(name) is not embedding for name, embedding in embeddings.items()):
            for old, new in zip(before, (names, lookup), strict=True):  # its folder was read anew meanwhile: that counts
                old.clear()
                old.update(new)
        database.word_embeddings, database.ids_lookup = before


def _with(stage: Any, finder: Any, embeddings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[int, Any]]:
    """The host's tables of embeddings by name and by first token, with these before its own of the same tokens.

    `finder` is the encoder whose tokens of a name count for all: the first, where there are two.
    """
    database = stage.hijack.embedding_db
    names = {**database.word_embeddings, **embeddings}
    of_host = dict(database.ids_lookup)  # it may read its folder anew meanwhile
    lookup = {first: [each for each in pairs if each[1].name not in embeddings] for first, pairs in of_host.items()}
    for name, embedding in embeddings.items():
        ids = finder.tokenize([name])[0]
        if not ids:
            message = f"The name {name!r} says nothing to the text encoder, so no prompt can hold it: choose another."
            raise ConfigError(message)
        pairs = [(ids, embedding), *lookup.get(ids[0], ())]
        lookup[ids[0]] = sorted(pairs, key=lambda pair: len(pair[0]), reverse=True)
    return names, lookup


def _view(stage: Any, finder: Any, embeddings: Mapping[str, Any]) -> Any:
    """The same encoder with a database of its own, so that prompts can be cut at any time, whoever is generating."""
    view = copy(stage)
    view.hijack = copy(stage.hijack)
    view.hijack.embedding_db = database = copy(stage.hijack.embedding_db)
    database.word_embeddings, database.ids_lookup = _with(stage, finder, embeddings)
    return view


@dataclass
class PromptEncoder:
    """One of the host's text encoders; `encoder` is its key in an embedding, and `finder` the first of the model's.

    `emphasize(hidden (1, T, D), ids, multipliers)` weighs a prompt's parts.
    """

    encoder: str
    stage: Any
    finder: Any
    layers: Layers
    device: torch.device
    emphasize: Emphasize
    _cut: dict[tuple[object, ...], tuple[tuple[_Chunk, ...], Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Find the table of token embeddings."""
        self._table = _table(self.stage)
        self.width = self._table.embedding_dim

    def tokenize(self, prompt: str, words: Mapping[str, Vectors]) -> TokenizedPrompt:
        """What is fed for a prompt; the host's own embeddings in it are places too."""
        chunks, _ = self._chunks(prompt, words)
        splices = [
            Splice(number, offset + 1, each.name) for number, chunk in enumerate(chunks) for offset, each in chunk.fixes
        ]
        weights = tuple(chunk.multipliers for chunk in chunks) if any(map(_is_weighed, chunks)) else ()
        return TokenizedPrompt(tuple(chunk.ids for chunk in chunks), tuple(splices), weights)

    def token_text(self, token_id: int) -> str:
        """Its letters; the end of a word is not marked."""
        tokenizer = getattr(self.stage.wrapped, "tokenizer", None)
        piece = tokenizer.convert_ids_to_tokens(token_id) if tokenizer else _open_clip_pieces().get(token_id, "")
        return piece.removesuffix("</w>")

    def token_embeddings(self, text: str) -> Tensor:
        """(m, D) float32 on the CPU."""
        return self._table.weight[self.stage.tokenize([text])[0]].detach().float().cpu()

    def __call__(self, prompts: Sequence[str], words: Mapping[str, Vectors]) -> tuple[Tensor, Tensor | None]:
        """Hidden states (B, n T, D), and those pooled at the first chunk's end of text (B, width), of an encoder that pools.

        Each prompt is weighed by itself, as when one image is generated. Only while it is our turn.
        """
        cut = [self._chunks(prompt, words) for prompt in prompts]
        longest = max(len(chunks) for chunks, _ in cut)
        empty = self._chunks("", {})
        cut = [_padded(each, empty, longest) for each in cut]
        vectors = {name: SimpleNamespace(name=name, vec=each[self.encoder].to(self.device)) for name, each in words.items()}
        chunks = [chunk for each, _ in cut for chunk in each]
        self.stage.hijack.fixes = [
            [(offset, vectors[each.name] if isinstance(each, _Word) else each) for offset, each in chunk.fixes]
            for chunk in chunks
        ]
        try:
            hidden, pooled = self.layers(torch.cat([ids for _, ids in cut]))  # (B n, T, D), (B n, width)
        finally:
            self.stage.hijack.fixes = None
        if any(map(_is_weighed, chunks)):
            hidden = torch.cat([self._weighed(row[None], chunk) for row, chunk in zip(hidden, chunks, strict=True)])
        hidden = hidden.reshape(len(prompts), -1, hidden.shape[-1])
        return hidden, None if pooled is None else pooled[::longest]

    def _weighed(self, hidden: Tensor, chunk: _Chunk) -> Tensor:
        return self.emphasize(hidden, chunk.ids, chunk.multipliers) if _is_weighed(chunk) else hidden

    def _chunks(self, prompt: str, words: Mapping[str, Vectors]) -> tuple[tuple[_Chunk, ...], Tensor]:
        """A prompt's chunks and their ids (n, T) on the device."""
        counts = {name: len(vectors[self.encoder]) for name, vectors in words.items()}
        key = (prompt, *counts.items())
        cut = self._cut.get(key)  # once: another thread may clear it at any time
        if cut is None:
            _check_counts(counts)
            chunks = tuple(self._read(chunk) for chunk in self._cut_by_host(prompt, counts))
            cut = chunks, torch.tensor([chunk.ids for chunk in chunks], device=self.device)
            if len(self._cut) >= REMEMBERED:
                self._cut.clear()
            self._cut[key] = cut
        return cut

    def _cut_by_host(self, prompt: str, counts: Mapping[str, int]) -> Sequence[Any]:
        view = _view(self.stage, self.finder, {name: _Word(name, count) for name, count in counts.items()})
        try:
            return view.tokenize_line(prompt)[0]
        except ValueError:
            weighted_parts(prompt)  # says what is wrong where the host does not
            raise

    def _read(self, chunk: Any) -> _Chunk:
        """The host's chunk; SD 2.x fills up with another id than the end of text."""
        ids, end, pad = list(chunk.tokens), self.stage.id_end, self.stage.id_pad
        if end != pad:
            first = ids.index(end) + 1
            ids[first:] = [pad] * (len(ids) - first)
        return _Chunk(tuple(ids), tuple(chunk.multipliers), tuple((offset, each) for offset, each in chunk.fixes))


def prompt_encoders(
    sd_model: Any, device: torch.device, emphasize: Emphasize, clip_skip: int = 1, *, clip_l_skip: bool = False
) -> tuple[PromptEncoder, ...]:
    """One for each text encoder of a model that kinds.kind_of takes.

    Clip skip is that of SD 1.x, and of SDXL's CLIP-L if `clip_l_skip`; the others were trained on one layer. ConfigError if
    there are not as many. It is ours, since the host's settings may be changed during a run.
    """
    stages = text_stages(sd_model)

    def encoder(stage: Any) -> PromptEncoder:
        name = (
            SDXL_ENCODERS[type(stage.wrapped).__name__]
            if is_sdxl(sd_model)
            else encoder_of_width(_table(stage).embedding_dim)
        )
        if not hasattr(stage.wrapped, "transformer"):
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
    """A CLIP up to the hidden states of this index, which may be normalised; None: the last, as they leave it."""
    transformer = stage.wrapped.transformer

    def run(ids: Tensor) -> tuple[Tensor, None]:
        if index is None:
            return transformer(input_ids=ids).last_hidden_state, None
        hidden = transformer(input_ids=ids, output_hidden_states=True).hidden_states[index]
        return transformer.text_model.final_layer_norm(hidden) if normalised else hidden, None

    return run


def _open_clip(stage: Any) -> Layers:
    """An OpenCLIP ends at the layer that the model's configuration names."""

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
    """The token embeddings: no other table has as many rows."""
    tables = (each for each in stage.modules() if isinstance(each, nn.Embedding))
    return max(tables, key=lambda each: each.num_embeddings)


def _open_clip_pieces() -> Mapping[int, str]:
    from open_clip import tokenizer  # which the host brings along

    return tokenizer._tokenizer.decoder


def _padded(cut: tuple[tuple[_Chunk, ...], Tensor], empty: tuple[tuple[_Chunk, ...], Tensor], count: int) -> Any:
    missing = count - len(cut[0])
    return (cut[0] + empty[0] * missing, torch.cat([cut[1], *[empty[1]] * missing])) if missing else cut


def _is_weighed(chunk: _Chunk) -> bool:
    return any(each != 1 for each in chunk.multipliers)


def _check_counts(counts: Mapping[str, int]) -> None:
    for name, count in counts.items():
        if count > CHUNK:
            message = f"The embedding {name!r} has {count} vectors: a prompt has room for {CHUNK} at a time."
            raise ConfigError(message)
