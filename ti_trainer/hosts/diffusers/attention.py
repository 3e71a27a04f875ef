"""Other attention for a U-Net than the library's own: in float32, where half precision ends; plain, to be compared with.

B batch, N places of an image, T places that are looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from torch.nn import functional as F


def needs_fp32_attention(unet: UNet2DConditionModel) -> bool:
    """SD 2.x, whose configuration asks for it only in part of the copies that are about; nobody else's overflows."""
    return bool(unet.config.upcast_attention or (unet.config.use_linear_projection and not unet.config.addition_embed_type))


class Float32Attention:
    """A processor for diffusers' Attention, of those parts that Stable Diffusion's U-Nets have."""

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *_: Any, **__: Any
    ) -> Tensor:
        """(B, N, width) -> (B, N, width); what is looked at (B, T, its width)."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            each.float().unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # (B, heads, N or T, width / heads)
            for each in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        found = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2).to(hidden_states.dtype)
        return attn.to_out[1](attn.to_out[0](found))


@contextmanager
def plain_attention(unet: UNet2DConditionModel) -> Iterator[None]:
    """Within it, attention is softmax(Q K) V by itself, all scores kept, as it was before there were kernels for it."""
    before = unet.attn_processors
    unet.set_attn_processor(AttnProcessor())
    try:
        yield
    finally:
        unet.set_attn_processor(before)
