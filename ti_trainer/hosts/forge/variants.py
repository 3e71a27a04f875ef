"""What differs between Forge, ersatzForge and Forge Neo, each in one function. This module does not import theirs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ti_trainer.offload.patching import Change


def is_current(data: Any) -> bool:
    """Whether the chosen checkpoint is loaded. ersatzForge keeps a hash of the text that Forge keeps."""
    chosen = str(data.forge_loading_parameters)
    return is_engine(data.sd_model) and data.forge_hash in (chosen, hash(chosen))


def is_engine(sd_model: Any) -> bool:
    """Whether it is a loaded model; before the first one there is a FakeInitialModel, and None after a failure."""
    return getattr(sd_model, "forge_objects_original", None) is not None


def uses_emphasis(engine: Any, emphasis: Any) -> None:
    """Set a text engine's emphasis. The newest Neo's reads its setting itself."""
    if not isinstance(getattr(type(engine), "emphasis", None), property):
        engine.emphasis = emphasis


def apply_emphasis(emphasis: Any, hidden: Tensor, ids: list[int], multipliers: Tensor) -> Tensor:
    """Weight hidden states (1, T, D) by multipliers (1, T). The newest Neo's emphasis is called as a function."""
    if callable(emphasis):
        weighted: Tensor = emphasis(hidden, multipliers)
    else:
        emphasis.tokens, emphasis.multipliers, emphasis.z = [ids], multipliers, hidden
        emphasis.after_transformers()
        weighted = emphasis.z
    return weighted


def upcasts_attention(attention: Any) -> bool:
    """Whether attention is set to compute in float32. Neo has another function for it, and upcasts by itself."""
    precision = getattr(attention, "get_attn_precision", lambda _: None)
    return precision(None) is torch.float32


def read_cards(database: Any) -> Mapping[str, Any]:
    """Read the folder again for the page's cards. ersatzForge's database is that of its text engines, used without one."""
    parameters = inspect.signature(database.load_textual_inversion_embeddings).parameters
    wanted = {"force_reload": True, "sync_with_sd_model": False, "find_only": True}
    database.load_textual_inversion_embeddings(**{name: value for name, value in wanted.items() if name in parameters})
    found: Mapping[str, Any] = database.word_embeddings
    return found


def silent(module: Any) -> Iterator[Change]:
    """Changes for `patched`: ersatzForge's module of text engines prints a line for each embedding in each forward pass."""
    yield module, "print", lambda *args, **kwargs: None
