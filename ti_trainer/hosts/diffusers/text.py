"""Prompts through a CLIP of the transformers library, with embeddings' vectors spliced in and a gradient to them.

Knows nothing of which models have one or two of them. B prompts of up to n chunks of T = 77 tokens, V vectors, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ti_trainer.errors import ConfigError
from ti_trainer.model import Vectors
from ti_trainer.prompts import PromptTokenizer, TokenizedPrompt

REMEMBERED = 4096  # prompts; shuffled tags make nearly every one a new one


@dataclass
class TextEncoder:
    """`name` is its key in an embedding. What it gives is the last layer's output, normalised, or `layer` before the end."""

    name: str
    module: CLIPTextModel | CLIPTextModelWithProjection
    tokenizer: CLIPTokenizer
    layer: int = 1
    normalised: bool = True
    _tokenized: dict[tuple[object, ...], tuple[TokenizedPrompt, Tensor]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Find the parts that are needed, whatever the library's version calls them."""
        self.table = self.module.get_input_embeddings()
        self.width = self.table.embedding_dim
        self._final_norm = next(m for n, m in self.module.named_modules() if n.endswith("final_layer_norm"))

    def ending(self, layer: int) -> TextEncoder:
        """The same, ending `layer - 1` layers earlier than at the last; ConfigError if it has no such layer."""
        layers = self.module.config.num_hidden_layers
        if not 1 <= layer <= layers:
            found = f"Clip skip (clip_skip): found {layer}"
            message = f"{found}, expected 1 to {layers}, the layers of this model's text encoder."
            raise ConfigError(message, "clip_skip")
        return replace(self, layer=layer)

    def token_ids(self, text: str) -> list[int]:
        """Ids of a text without special tokens, and none in it: OpenCLIP's filler `!` would else be one of them."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids

    def token_text(self, token_id: int) -> str:
        """Its letters; the end of a word is not marked."""
        return self.tokenizer.convert_ids_to_tokens(token_id).removesuffix("</w>")

    def token_embeddings(self, text: str) -> Tensor:
        """(m, D) float32 on the CPU for the m tokens of a text."""
        return self.table.weight[self.token_ids(text)].detach().float().cpu()

    def tokenize(self, prompt: str, words: Mapping[str, Vectors]) -> TokenizedPrompt:
        """A prompt's chunks of token ids, and where the words' vectors go."""
        return self._tokenize(prompt, words)[0]

    def __call__(self, prompts: Sequence[str], words: Mapping[str, Vectors]) -> tuple[Tensor, Tensor | None]:
        """Hidden states (B, n T, D), each chunk encoded alone, and those pooled at the first one's end of text (B, width).

        Only an encoder with a projection pools.
        """
        encoded = [self._tokenize(prompt, words) for prompt in prompts]
        rows = max(len(ids) for _, ids in encoded)
        parts = [ids for _, ids in encoded]
        if any(len(ids) < rows for ids in parts):
            _, empty = self._tokenize("", words)
            parts = [torch.cat([ids, *[empty] * (rows - len(ids))]) for ids in parts]

        def splice(_module: nn.Module, _inputs: object, embedded: Tensor) -> Tensor:
            for number, (tokenized, _) in enumerate(encoded):
                for place in tokenized.splices:
                    vectors = words[place.name][self.name]
                    row, end = number * rows + place.chunk, place.offset + len(vectors)
                    embedded[row, place.offset : end] = vectors.to(embedded)
            return embedded  # (B n, T, D)

        hook = self.table.register_forward_hook(splice)
        try:
            hidden, pooled = self.states(torch.cat(parts))
        finally:
            hook.remove()
        hidden = hidden.reshape(len(prompts), -1, self.width)
        return hidden, None if pooled is None else pooled[::rows]

    def states(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """Hidden states (B, T, D) of token ids (B, T), and pooled ones (B, width)."""
        out = self.module(ids, output_hidden_states=self.layer > 1)
        hidden = out.last_hidden_state if self.layer == 1 else out.hidden_states[-self.layer]
        if self.layer > 1 and self.normalised:
            hidden = self._final_norm(hidden)
        return hidden, getattr(out, "text_embeds", None)

    def _tokenize(self, prompt: str, words: Mapping[str, Vectors]) -> tuple[TokenizedPrompt, Tensor]:
        """A prompt's places of embeddings and its ids (n, T)."""
        counts = {name: len(vectors[self.name]) for name, vectors in words.items()}
        key = (prompt, *counts.items())
        found = self._tokenized.get(key)  # once: another thread may clear it at any time
        if found is None:
            if len(self._tokenized) >= REMEMBERED:
                self._tokenized.clear()
            pieces = self.tokenizer
            special = (pieces.bos_token_id, pieces.eos_token_id, pieces.pad_token_id)
            tokenized = PromptTokenizer(self.token_ids, *special, self.token_ids(",")[0], counts)(prompt)
            found = tokenized, torch.tensor(tokenized.chunks, device=self.table.weight.device)
            self._tokenized[key] = found
        return found
