"""The layers with which a U-Net attends to the text; they have the same names in diffusers and in the original code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ti_trainer.model import CrossAttention
from ti_trainer.offload.manager import MemoryManager
from ti_trainer.offload.patching import patched


class AttendsToText:
    """A model of a host whose U-Net has cross-attention."""

    memory: MemoryManager

    @contextmanager
    def cross_attention(self) -> Iterator[Sequence[CrossAttention]]:
        """`DiffusionModel.cross_attention`."""
        named = self.memory.networks.unet.named_modules()
        blocks = [each for name, each in named if name.endswith("attn2") and hasattr(each, "heads")]
        with patched([(self.memory, "compiled", None)]):
            yield [CrossAttention(each.to_q, each.to_k, each.to_v, each.heads) for each in blocks]
