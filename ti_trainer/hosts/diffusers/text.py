"""Encodes prompts with a CLIP of transformers; the result is differentiable in the embeddings' vectors.

Parts of a prompt are weighted as by the WebUI's emphasis mode "Original".

B prompts of up to n chunks of T = 77 tokens, V vectors, D width.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import ftfy
import torch
from torch import Tensor, nn

from ti_trainer.errors import ConfigError
from ti_trainer.functional.transfer import sent
from ti_trainer.hosts.diffusers.library import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from ti_trainer.model import Vectors
from ti_trainer.prompts import PromptTokenizer, TokenizedPrompt

REMEMBERED = 4096  # prompts; with shuffled tags nearly every prompt is new
SPECIAL = re.compile(r"<\|(startoftext|endoftext)\|>", re.IGNORECASE)
SPECIAL_OF_OPEN_CLIP = re.compile(r"<(start_of_text|end_of_text)>", re.IGNORECASE)


@dataclass(frozen=True)
class _Encoded:
    """A tokenized prompt, its ids (n, T), and its weights (n, T) if it has any."""

    tokenized: TokenizedPrompt
    ids: Tensor
    weights: Tensor | None


@dataclass
class TextEncoder:
    """`name` is its key in an embedding. Its output is that of the last layer, or of the one `layer - 1` before it."""

    name: str
    module: CLIPTextModel | CLIPTextModelWithProjection
    tokenizer: CLIPTokenizer
    layer: int = 1
    normalised: bool = True
    _known: dict[tuple[object, ...], _Encoded] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Find the modules that are needed; their names depend on the library's version."""
        self.table = self.module.get_input_embeddings()
        self.width = self.table.embedding_dim
        self._tokenizer_for = lru_cache(4)(self._make_tokenizer)  # so that names are tokenized once, not for each prompt
        self._final_norm = next(m for n, m in self.module.named_modules() if n.endswith("final_layer_norm"))

    def compute_in(self, dtype: torch.dtype) -> None:
        """Compute the layers in this dtype, and their input, the sum of embeddings and vectors, in float32."""
        embeddings = next(each for each in self.module.modules() if self.table in each.children())
        exact = set(embeddings.modules())
        for each in self.module.modules():
            for weight in each.parameters(recurse=False):
                weight.data = weight.data.to(torch.float32 if each in exact else dtype)
        if dtype != torch.float32:
            embeddings.register_forward_hook(lambda _module, _inputs, embedded: embedded.to(dtype))

    def ending(self, layer: int) -> TextEncoder:
        """This encoder with the output `layer - 1` layers before the last; ConfigError if it has no such layer."""
        layers = self.module.config.num_hidden_layers
        if not 1 <= layer <= layers:
            found = f"Clip skip (clip_skip): found {layer}"
            message = f"{found}, expected 1 to {layers}, the layers of this model's text encoder."
            raise ConfigError(message, "clip_skip")
        return replace(self, layer=layer)

    def token_ids(self, text: str) -> list[int]:
        """A text's ids, with special tokens only where they are written out, as by the WebUI's tokenizers.

        Those repair wrongly decoded text, and OpenCLIP's also HTML entities. `!`, its padding token, is a normal token here.
        """
        text, special = ftfy.fix_text(text), SPECIAL
        if self.tokenizer.pad_token_id != self.tokenizer.eos_token_id:
            text, special = html.unescape(html.unescape(text)), SPECIAL_OF_OPEN_CLIP
        pieces = special.split(text)  # every second one is a special token's name
        ids = self._ids_of(pieces[0])
        for name, piece in zip(pieces[1::2], pieces[2::2], strict=True):
            is_start = name.lower().startswith("start")
            ids += [self.tokenizer.bos_token_id if is_start else self.tokenizer.eos_token_id, *self._ids_of(piece)]
        return ids

    def _ids_of(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids

    def token_text(self, token_id: int) -> str:
        """The text of a token, without the mark at the end of a word."""
        return self.token_piece(token_id).removesuffix("</w>")

    def token_piece(self, token_id: int) -> str:
        """A token as the vocabulary spells it; "" for an unknown id."""
        known = 0 <= token_id < len(self.tokenizer)
        return self.tokenizer.convert_ids_to_tokens(token_id) or "" if known else ""

    def token_embeddings(self, text: str) -> Tensor:
        """(m, D) float32 on the CPU for the m tokens of a text."""
        return self.table.weight[self.token_ids(text)].detach().float().cpu()

    def tokenize(self, prompt: str, embeddings: Mapping[str, Vectors]) -> TokenizedPrompt:
        """A prompt's chunks of token ids, and the positions of embeddings."""
        return self._encode(prompt, embeddings).tokenized

    def __call__(
        self, prompts: Sequence[str], embeddings: Mapping[str, Vectors], min_chunks: int = 1
    ) -> tuple[Tensor, Tensor | None]:
        """Hidden states (B, n T, D), each chunk encoded on its own, and the pooled states of the first chunks (B, width).

        Only an encoder with a projection pools. Prompts are padded to at least `min_chunks` chunks.
        """
        encoded = [self._encode(prompt, embeddings) for prompt in prompts]
        rows = max(min_chunks, *(len(each.ids) for each in encoded))
        parts = [each.ids for each in encoded]
        if any(len(ids) < rows for ids in parts):
            empty = self._encode("", embeddings).ids
            parts = [torch.cat([ids, *[empty] * (rows - len(ids))]) for ids in parts]

        def insert_vectors(_module: nn.Module, _inputs: object, embedded: Tensor) -> Tensor:
            for number, each in enumerate(encoded):
                for splice in each.tokenized.splices:
                    vectors = embeddings[splice.name][self.name]
                    row, end = number * rows + splice.chunk, splice.offset + len(vectors)
                    embedded[row, splice.offset : end] = vectors.to(embedded)
            return embedded  # (B n, T, D)

        hook = self.table.register_forward_hook(insert_vectors)
        try:
            hidden, pooled = self.states(torch.cat(parts))
        finally:
            hook.remove()
        if any(each.weights is not None for each in encoded):
            weights = [each.weights for each in encoded]
            hidden = torch.cat([_weighted(*each) for each in zip(hidden.split(rows), weights, strict=True)])
        hidden = hidden.reshape(len(prompts), -1, self.width)
        return hidden, None if pooled is None else pooled[::rows]

    def states(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """Hidden states (B, T, D) of token ids (B, T), and pooled ones (B, width)."""
        out = self.module(ids, output_hidden_states=self.layer > 1)
        hidden = out.last_hidden_state if self.layer == 1 else out.hidden_states[-self.layer]
        if self.layer > 1 and self.normalised:
            hidden = self._final_norm(hidden)
        return hidden, getattr(out, "text_embeds", None)

    def _encode(self, prompt: str, embeddings: Mapping[str, Vectors]) -> _Encoded:
        """A prompt's chunks, cached by the embeddings' numbers of vectors."""
        counts = tuple((name, len(vectors[self.name])) for name, vectors in embeddings.items())
        device = self.table.weight.device  # the encoder may have been in RAM at the last call
        known = self._known.get((prompt, counts, device))
        if known is None:
            tokenized = self._tokenizer_for(counts)(prompt)
            weights = sent(torch.tensor(tokenized.weights), device) if tokenized.weights else None
            known = _Encoded(tokenized, sent(torch.tensor(tokenized.chunks), device), weights)
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[prompt, counts, device] = known
        return known

    def _make_tokenizer(self, counts: tuple[tuple[str, int], ...]) -> PromptTokenizer:
        special = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id)
        return PromptTokenizer(self.token_ids, *special, self.token_ids(",")[0], dict(counts))


def _weighted(hidden: Tensor, weights: Tensor | None) -> Tensor:
    """Hidden states (n, T, D) times weights (m <= n, T), each chunk scaled to its mean before; None: unchanged."""
    if weights is None:
        return hidden
    rows = [_weighted_chunk(chunk, weight) for chunk, weight in zip(hidden, weights)]  # noqa: B905 - padding has no weights
    return torch.cat([torch.stack(rows), hidden[len(rows) :]])


def _weighted_chunk(hidden: Tensor, weights: Tensor) -> Tensor:
    """(T, D), computed in float32."""
    before = hidden.float()
    after = before * weights[:, None]  # (T, D)
    return (after * (before.mean() / after.mean())).to(hidden)
