"""Convolutions of few places with many weights, on a CPU. Knows no U-Net's parts, only its layers.

oneDNN, which torch takes for them, first brings the weights into an order of its own, in every call: with 4 x 4 or 8 x 8
places that takes longer than the convolution. As one product of matrices, weights are read once, as they lie.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Channels in times channels out by place, from which on the product is faster, both ways. Measured 2026-11-21 with 3 x 3
# kernels, float32, one thread of an AMD EPYC (Zen 5), 17 shapes of SD 1.x at batch 1 and 4: 1.4 to 4.6 times as fast from
# 19,000 on, as fast around 13,000, and slower below.
PRODUCT_FROM = 16_000


class FewPlacesConv2d(nn.Conv2d):
    """A Conv2d that computes as one product of matrices where that is faster; the same numbers but for rounding."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, channels out, H', W')."""
        places = input.shape[0] * (input.shape[2] // self.stride[0]) * (input.shape[3] // self.stride[1])
        many = self.in_channels * self.out_channels >= PRODUCT_FROM * places
        if not many or input.dtype != torch.float32 or self.weight.requires_grad:  # the way back to weights was not measured
            return super().forward(input)
        return torch.ops.aten.thnn_conv2d(input, self.weight, self.kernel_size, self.bias, self.stride, self.padding)


def prefer_products(module: nn.Module) -> None:
    """Replace what may profit, keeping the very weights; there is no reason to on a GPU."""
    for name, conv in list(module.named_modules()):
        if type(conv) is not nn.Conv2d or conv.kernel_size != (3, 3) or conv.in_channels * conv.out_channels < PRODUCT_FROM:
            continue
        shape = conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding
        if conv.groups > 1 or conv.dilation != (1, 1) or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            continue
        other = FewPlacesConv2d(*shape, bias=conv.bias is not None, device="meta").train(conv.training)
        other.weight, other.bias = conv.weight, conv.bias
        module.set_submodule(name, other)
