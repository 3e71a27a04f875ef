"""What the VAE's encoder attends to is what its own block computes with, in half precision too, and all is given back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_webui_model import state

from ti_trainer.errors import ModelError

PIXELS = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("sd_model", ["SD 1.x", "SDXL", "sgm SDXL"], indirect=True)
def test_with_it_the_blocks_output_is_found_again(webui_model: Callable[..., Any], sd_model: Any) -> None:
    block = sd_model.first_stage_model.encoder.mid.attn_1
    model, before = webui_model(), state(sd_model)
    attention = model.image_attention(PIXELS)
    assert state(sd_model) == before
    seen: list[Any] = []
    block.register_forward_hook(lambda _, given, out: seen.extend((given[0], out)))
    with torch.no_grad():
        sd_model.first_stage_model.encode(PIXELS)
        fed, given = seen
        places = fed.shape[-2] * fed.shape[-1]
        values = block.v(block.norm(fed)).flatten(2)[0].T  # (H W, c)
        again = block.proj_out((attention @ values).T.view_as(fed)) + fed
    assert attention.shape == (places, places)
    assert attention.std() > 1e-6
    torch.testing.assert_close(attention.sum(1), torch.ones(places))
    torch.testing.assert_close(again, given, rtol=1e-4, atol=1e-5)


def test_where_half_precision_overflows_it_is_that_of_full(webui_model: Callable[..., Any], sd_model: Any) -> None:
    vae = sd_model.first_stage_model
    vae.encoder.conv_in.weight.data *= 2e5
    vae.half()
    assert not vae.encoder(PIXELS.half()).isfinite().all()
    attention = webui_model().image_attention(PIXELS)
    assert {each.dtype for each in vae.parameters()} == {torch.float16}
    vae.float()
    torch.testing.assert_close(attention, webui_model().image_attention(PIXELS))


def test_with_medvram_the_host_brings_the_vae(webui_model: Callable[..., Any], sd_model: Any) -> None:
    brought = []

    def send_me_to_gpu(module: Any, _: Any) -> None:
        brought.append(module)

    sd_model.lowvram = True
    sd_model.first_stage_model.register_forward_pre_hook(send_me_to_gpu)
    webui_model().image_attention(PIXELS)
    assert brought == [sd_model.first_stage_model]


def test_a_vae_without_attention_is_told(webui_model: Callable[..., Any], sd_model: Any) -> None:
    sd_model.first_stage_model.encoder.mid.attn_1 = torch.nn.Identity()
    with pytest.raises(ModelError, match="no attention in its encoder"):
        webui_model().image_attention(PIXELS)
