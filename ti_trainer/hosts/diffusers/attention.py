"""Attention processors for a U-Net: in float32, for models that overflow in half precision, and unfused, for comparison.

B batch, N pixels of the hidden states, T tokens of the context.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ti_trainer.hosts.diffusers.library import AttnProcessor, UNet2DConditionModel


def needs_fp32_attention(unet: UNet2DConditionModel) -> bool:
    """Whether attention overflows in float16: that of SD 2.x, although not all copies of its configuration say so."""
    return bool(unet.config.upcast_attention or (unet.config.use_linear_projection and not unet.config.addition_embed_type))


class Float32Attention:
    """A processor for diffusers' Attention modules in Stable Diffusion's U-Nets."""

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *_: Any, **__: Any
    ) -> Tensor:
        """(B, N, width) -> (B, N, width); context (B, T, context width)."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            each.float().unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # (B, heads, N or T, width / heads)
            for each in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2).to(hidden_states.dtype)
        return attn.to_out[1](attn.to_out[0](attended))


@contextmanager
def plain_attention(unet: UNet2DConditionModel) -> Iterator[None]:
    """Within it, attention is computed without a fused kernel and keeps all scores."""
    before = unet.attn_processors
    unet.set_attn_processor(AttnProcessor())
    try:
        yield
    finally:
        unet.set_attn_processor(before)
