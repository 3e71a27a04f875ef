"""Stand-ins for what CI cannot have, written by us to behave like it: the WebUI's text encoder wrappers, and parts of `sgm`.

`check_in_webui.py` compares with the real ones. Chunks of 75 tokens, emphasis as `(text:1.2)`, embeddings found by their
tokens and put among the token embeddings at `hijack.fixes`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ti_trainer.hosts.webui.emphasis import emphasis_by

CHUNK = 75


class TokenTable(nn.Module):
    """Token embeddings with vectors in place of some, once for each time that `fixes` is set."""

    def __init__(self, wrapped: nn.Embedding, hijack: Any, key: str) -> None:
        super().__init__()
        self.wrapped, self.hijack, self.key = wrapped, hijack, key

    def forward(self, ids: Tensor) -> Tensor:
        fixes, self.hijack.fixes = self.hijack.fixes, None
        rows = []
        for row, places in zip(self.wrapped(ids), fixes or [()] * len(ids), strict=True):
            for offset, embedding in places:
                vectors = embedding.vec[self.key] if isinstance(embedding.vec, dict) else embedding.vec
                row = torch.cat([row[: offset + 1], vectors, row[offset + 1 + len(vectors) :]]).to(row.dtype)
            rows.append(row)
        return torch.stack(rows)


class Emphasis:
    """The WebUI's "Original": multiplies, and keeps the mean."""

    tokens: list[list[int]]
    multipliers: Tensor
    z: Tensor

    def after_transformers(self) -> None:
        weighed = self.z * self.multipliers[..., None]
        self.z = weighed * (self.z.mean() / weighed.mean())


class CondStage(nn.Module):
    """Stands where the WebUI puts its wrapper around a CLIP or OpenCLIP; two of a model share one `hijack`."""

    input_key, is_trainable, ucg_rate, legacy_ucg_val = "txt", False, 0.0, None

    def __init__(self, wrapped: Any, hijack: Any = None, key: str = "clip_l") -> None:
        super().__init__()
        self.wrapped = wrapped
        self.hijack = hijack or SimpleNamespace(
            fixes=None,
            comments=[],
            extra_generation_params={},
            embedding_db=SimpleNamespace(word_embeddings={}, ids_lookup={}),
        )
        self.is_clip = hasattr(wrapped, "transformer")
        table = wrapped.transformer.text_model.embeddings if self.is_clip else wrapped.model
        table.token_embedding = TokenTable(table.token_embedding, self.hijack, key)
        self.id_start, self.id_end = 49406, 49407
        self.id_pad = self.id_end if self.is_clip else 0
        self.lines_cut: list[str] = []
        self.emphasize = emphasis_by(Emphasis)

    def register(self, embedding: Any) -> None:
        database = self.hijack.embedding_db
        database.word_embeddings[embedding.name] = embedding
        ids = self.tokenize([embedding.name])[0]
        database.ids_lookup.setdefault(ids[0], []).append((ids, embedding))

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        if self.is_clip:
            return self.wrapped.tokenizer(list(texts), truncation=False, add_special_tokens=False)["input_ids"]
        from open_clip import tokenizer

        return [tokenizer._tokenizer.encode(text) for text in texts]

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

    def encode_with_transformers(self, ids: Tensor) -> Tensor:
        if self.is_clip and self.wrapped.layer == "last":
            return self.wrapped.transformer(input_ids=ids).last_hidden_state
        if self.is_clip:
            return self.wrapped.transformer(input_ids=ids, output_hidden_states=True).hidden_states[self.wrapped.layer_idx]
        found = self.wrapped.encode_with_transformer(ids)
        if isinstance(found, dict):
            hidden = found[self.wrapped.layer]
            hidden.pooled = found["pooled"]
            return hidden
        return found

    def forward(self, texts: Sequence[str]) -> Any:
        """One text at a time; leaves its traces, as the WebUI does."""
        (text,) = texts
        hidden, pooled = [], []
        for chunk in self.tokenize_line(text)[0]:
            ids = torch.tensor([chunk.tokens])
            ids[0, chunk.tokens.index(self.id_end) + 1 :] = self.id_pad
            self.hijack.fixes = [chunk.fixes]
            states = self.encode_with_transformers(ids)
            pooled.append(getattr(states, "pooled", None))
            hidden.append(self.emphasize(states, chunk.tokens, chunk.multipliers))
        self.hijack.extra_generation_params["TI hashes"] = "some"
        return torch.cat(hidden, 1) if pooled[0] is None else (torch.cat(hidden, 1), pooled[0])

    def _embedding_at(self, ids: list[int], position: int) -> tuple[list[int], Any]:
        for key, embedding in self.hijack.embedding_db.ids_lookup.get(ids[position], ()):
            if ids[position : position + len(key)] == key:
                return key, embedding
        return [ids[position]], None


def _parts(line: str) -> list[tuple[str, float]]:
    found = re.findall(r"\(([^():]+):([\d.]+)\)|([^()]+)", line)
    return [(weighed, float(weight)) if weighed else (plain, 1.0) for weighed, weight, plain in found]


class FrozenOpenCLIPEmbedder2(nn.Module):
    """`sgm`'s, over a real OpenCLIP: the last layer but one as it is, and the last pooled at the end of text."""

    layer = "penultimate"

    def __init__(self, arch: str) -> None:
        super().__init__()
        import open_clip

        self.model = open_clip.create_model(arch)
        del self.model.visual
        self.requires_grad_(False)

    def encode_with_transformer(self, ids: Tensor) -> dict[str, Tensor]:
        model = self.model
        states = [(model.token_embedding(ids) + model.positional_embedding).transpose(0, 1)]
        for block in model.transformer.resblocks:
            states.append(block(states[-1], attn_mask=model.attn_mask))
        pooled = self.pool(model.ln_final(states[-1].transpose(0, 1)), ids)
        return {"penultimate": states[-2].transpose(0, 1), "pooled": pooled}

    def pool(self, hidden: Tensor, ids: Tensor) -> Tensor:
        return hidden[torch.arange(len(ids)), ids.argmax(1)] @ self.model.text_projection


class SizeEmbedder(nn.Module):
    """`sgm`'s ConcatTimestepEmbedderND: each number as timesteps are embedded, by the same function."""

    def __init__(self, input_key: str, width: int) -> None:
        super().__init__()
        self.input_key, self.width = input_key, width

    def forward(self, numbers: Tensor) -> Tensor:
        from ldm.modules.diffusionmodules import openaimodel

        embedded = openaimodel.timestep_embedding(numbers.flatten(), self.width)  # (2 B, width)
        return embedded.reshape(len(numbers), -1)


class Conditioner(nn.Module):
    """`sgm`'s GeneralConditioner."""

    def __init__(self, embedders: Sequence[nn.Module]) -> None:
        super().__init__()
        self.embedders = nn.ModuleList(embedders)

    def forward(self, told: dict[str, Any]) -> dict[str, Tensor]:
        found = [embedder(told[embedder.input_key]) for embedder in self.embedders]
        flat = [part for each in found for part in (each if isinstance(each, tuple) else (each,))]
        hidden, others = [each for each in flat if each.ndim == 3], [each for each in flat if each.ndim == 2]
        return {"crossattn": torch.cat(hidden, 2), "vector": torch.cat(others, 1)}


class Engine(nn.Module):
    """`sgm`'s DiffusionEngine with what the WebUI adds to it."""

    parameterization, scale_factor = "eps", 0.13025

    def __init__(self, unet: nn.Module, vae: nn.Module, conditioner: Conditioner) -> None:
        super().__init__()
        self.model, self.first_stage_model = _Wrapper(unet), vae.requires_grad_(False)
        self.conditioner = self.cond_stage_model = conditioner
        self.alphas_cumprod = torch.linspace(0.0292**0.5, 0.0345**0.5, 1000).square().flip(0)


class _Wrapper(nn.Module):
    conditioning_key = "crossattn"

    def __init__(self, diffusion_model: nn.Module) -> None:
        super().__init__()
        self.diffusion_model = diffusion_model

    def forward(self, x: Tensor, timesteps: Tensor, cond: dict[str, Tensor]) -> Tensor:
        return self.diffusion_model(x, timesteps, context=cond["crossattn"], y=cond["vector"])
