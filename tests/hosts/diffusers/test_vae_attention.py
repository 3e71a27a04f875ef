"""What the VAE's encoder attends to is what its own block computes with."""

from __future__ import annotations

from typing import Any

import families
import pytest
import torch
from diffusers import AutoencoderKL

from ti_trainer.errors import ModelError
from ti_trainer.hosts.diffusers.loading import load
from ti_trainer.hosts.diffusers.model import DiffusersModel


def pixels(height: int = 64, width: int = 96) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def passed(vae: AutoencoderKL) -> tuple[torch.Tensor, torch.Tensor]:
    """What the block in the middle is fed for the pixels, and what it gives."""
    seen: list[Any] = []
    hook = vae.encoder.mid_block.attentions[0].register_forward_hook(lambda _, given, out: seen.extend((given[0], out)))
    with torch.no_grad():
        vae.encode(pixels())
    hook.remove()
    return seen[0], seen[1]


@pytest.mark.parametrize("name", ["embedded", "sdxl"])
def test_with_it_the_blocks_output_is_found_again(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = name if name == "embedded" else str(families.save(name, tmp_path_factory.mktemp("family") / name))
    model = load(folder, "cpu")
    block = model.vae.encoder.mid_block.attentions[0]
    attention = model.image_attention(pixels())
    fed, given = passed(model.vae)
    places = fed.shape[-2] * fed.shape[-1]
    assert attention.shape == (places, places)
    assert attention.dtype == torch.float32
    assert attention.std() > 1e-6
    torch.testing.assert_close(attention.sum(1), torch.ones(places))
    with torch.no_grad():
        normed = block.group_norm(fed).flatten(2)[0].T  # (H W, c)
        again = block.to_out[0](attention @ block.to_v(normed)).T.view_as(fed) + fed
    torch.testing.assert_close(again, given, rtol=1e-4, atol=1e-5)
    assert not block._forward_pre_hooks


def test_a_vae_without_attention_is_told(model: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[32] * 4,
        mid_block_add_attention=False,
    )
    monkeypatch.setattr(model._vae, "network", plain)
    with pytest.raises(ModelError, match="no attention in its encoder"):
        model.image_attention(pixels())
