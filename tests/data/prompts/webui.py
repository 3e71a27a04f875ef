"""The AUTOMATIC1111 WebUI's own prompt parser and text engine, loaded from a checkout and set to its defaults.

Its modules that have no part in this are stubs, and its text encoder is the one of our embedded model.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import torch
from torch import Tensor, nn

REAL = (
    "modules",
    "modules.prompt_parser",
    "modules.sd_emphasis",
    "modules.sd_hijack",
    "modules.sd_hijack_clip",
    "modules.sd_hijack_open_clip",
    "modules.textual_inversion",
    "modules.textual_inversion.textual_inversion",
)
STUBS = ("modules", "ldm", "sgm", "lark")


class _Stubs(MetaPathFinder, Loader):
    """Any module of these packages, with anything in it."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        stub = name.partition(".")[0] in STUBS and name not in REAL
        return ModuleSpec(name, self, is_package=True) if stub else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = MagicMock(name=spec.name)
        module.__path__, module.__spec__ = [], spec
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is in it."""


def load(checkout: Path, network: nn.Module, tokenizer: Any) -> Any:
    """Its engines for CLIP (`clip`) and OpenCLIP (`open_clip`) over one network, its settings and database of embeddings."""
    for name in ("nms", "qnms"):  # torchvision for another torch misses them; open_clip imports it, and nothing uses it here
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    sys.meta_path.insert(0, _Stubs())
    sys.path.insert(0, str(checkout))
    import modules.devices
    import modules.shared

    opts = SimpleNamespace(
        emphasis="Original",
        comma_padding_backtrack=20,
        use_old_emphasis_implementation=False,
        CLIP_stop_at_last_layers=1,
        textual_inversion_add_hashes_to_infotext=False,
    )
    modules.shared.opts = opts
    modules.devices.device = torch.device("cpu")
    modules.devices.cond_cast_unet = lambda each: each
    from modules import sd_hijack, sd_hijack_clip, sd_hijack_open_clip
    from modules.textual_inversion.textual_inversion import EmbeddingDatabase

    hijack = SimpleNamespace(fixes=None, extra_generation_params={}, embedding_db=EmbeddingDatabase())
    place = network.text_model.embeddings
    place.token_embedding = sd_hijack.EmbeddingsWithFixes(place.token_embedding, hijack)
    clip = sd_hijack_clip.FrozenCLIPEmbedderWithCustomWords(
        SimpleNamespace(transformer=network, tokenizer=tokenizer), hijack
    )
    wrapped = SimpleNamespace(encode_with_transformer=lambda ids: network(input_ids=ids).last_hidden_state)
    open_clip = sd_hijack_open_clip.FrozenOpenCLIPEmbedderWithCustomWords(wrapped, hijack)
    return SimpleNamespace(clip=clip, open_clip=open_clip, opts=opts, database=hijack.embedding_db)


def register(webui: Any, name: str, vectors: Tensor) -> None:
    """As the WebUI does it with a file of its folder."""
    embedding = SimpleNamespace(name=name, vec=vectors, vectors=len(vectors), shorthash=None)
    webui.database.register_embedding(embedding, SimpleNamespace(cond_stage_model=webui.clip))


def encode(engine: Any, prompt: str) -> tuple[list[list[int]], list[list[float]], list[list[tuple[int, str]]], Tensor]:
    """Ids as they are fed, multipliers, and offsets of embeddings, of each chunk; and the conditioning (1, n T, D)."""
    fed: list[Sequence[Sequence[int]]] = []
    original = engine.encode_with_transformers

    def noting(tokens: Tensor) -> Tensor:
        fed.append(tokens.tolist())
        return original(tokens)

    engine.encode_with_transformers = noting
    try:
        with torch.no_grad():
            hidden = engine([prompt])
    finally:
        del engine.encode_with_transformers
    chunks, _ = engine.tokenize_line(prompt)
    fixes = [[(fix.offset, fix.embedding.name) for fix in chunk.fixes] for chunk in chunks]
    return [ids for (ids,) in fed], [chunk.multipliers for chunk in chunks], fixes, hidden
