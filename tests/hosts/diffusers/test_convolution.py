"""Convolutions as products of matrices give what the library's own do, both ways."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ti_trainer.hosts.diffusers.convolution import PRODUCT_FROM, SmallImageConv2d, prefer_products


def both(module: nn.Module, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Output, and the gradient of its squares with respect to the input."""
    given = pixels.clone().requires_grad_()
    out = module(given)
    (gradient,) = torch.autograd.grad(out.square().sum(), given)
    return out.detach(), gradient


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("shape", [(1, 2, 2), (2, 4, 2), (1, 3, 5), (1, 16, 16)])
def test_the_numbers_are_the_same(shape: tuple[int, int, int], memory_format: torch.memory_format, stride: int) -> None:
    torch.manual_seed(0)
    count, height, width = shape
    plain = nn.Sequential(nn.Conv2d(256, 512, 3, stride, 1)).to(memory_format=memory_format).requires_grad_(False)
    pixels = torch.randn(count, 256, height, width).to(memory_format=memory_format)
    wanted = both(plain, pixels)
    weight = plain[0].weight
    prefer_products(plain)
    assert type(plain[0]) is SmallImageConv2d
    assert plain[0].weight is weight
    assert not plain[0].weight.requires_grad
    assert [type(each) for each in both(plain, pixels)] == [torch.Tensor] * 2
    for found, expected in zip(both(plain, pixels), wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_product_is_taken_where_places_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = SmallImageConv2d(256, 512, 3, padding=1).requires_grad_(False)
    limit = 256 * 512 // PRODUCT_FROM
    taken = []
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, given: taken.append(given.shape) or given)
    conv(torch.zeros(limit, 256, 1, 1))
    assert taken == []
    conv(torch.zeros(limit + 1, 256, 1, 1))
    conv(torch.zeros(1, 256, 1, 1, dtype=torch.bfloat16))
    conv.requires_grad_(True)(torch.zeros(1, 256, 1, 1))
    assert len(taken) == 3


def test_other_layers_stay_as_they_are() -> None:
    layers = [
        nn.Conv2d(64, 64, 3, padding=1),
        nn.Conv2d(512, 512, 1),
        nn.Conv2d(512, 512, 3, padding=2, dilation=2),
        nn.Conv2d(512, 512, 3, padding=1, groups=2),
        nn.Conv2d(512, 512, 3, padding="same"),
        nn.Conv2d(512, 512, 3, padding=1, padding_mode="reflect"),
        nn.Linear(512, 512),
    ]
    whole = nn.Sequential(*layers)
    prefer_products(whole)
    assert list(whole) == layers
