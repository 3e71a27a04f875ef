"""The VAE computes in half precision on a GPU, where its results are nearly the same, and in float32 where they are not."""

from __future__ import annotations

import families
import pytest
import torch

from ti_trainer.hosts.diffusers.loading import load
from ti_trainer.hosts.diffusers.model import DiffusersModel
from ti_trainer.hosts.diffusers.vae import TILES, Vae, dtype_on
from ti_trainer.offload.manager import MemoryManager

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LATENTS = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
PIXELS = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def model() -> DiffusersModel:
    """One whose VAE can be changed."""
    return load("embedded", "cpu")


@pytest.mark.parametrize(
    ("device", "unet", "is_sdxl", "force_upcast", "wanted"),
    [
        (CUDA, torch.float16, False, True, torch.float16),  # the setting's default, which SD 1.x and 2.x do not read
        (CUDA, torch.bfloat16, False, True, torch.float16),
        (CUDA, torch.float32, False, False, torch.float32),
        (CUDA, torch.float16, True, True, torch.float32),
        (CUDA, torch.float16, True, False, torch.float16),  # an SDXL VAE that was made for fp16
        (CPU, torch.bfloat16, False, False, torch.float32),
    ],
)
def test_its_precision(
    device: torch.device, unet: torch.dtype, is_sdxl: bool, force_upcast: bool, wanted: torch.dtype
) -> None:
    vae = families.vae("sd1")
    vae.register_to_config(force_upcast=force_upcast)
    assert dtype_on(device, unet, vae, is_sdxl=is_sdxl) == wanted


def test_in_half_precision_latents_and_pixels_are_nearly_the_same(model: DiffusersModel) -> None:
    mean, std = model.encode_images(PIXELS)
    with torch.no_grad():
        pixels = model.decode(LATENTS)
        model.vae.half()
        in_half = model.encode_images(PIXELS)
        assert (in_half[0] - mean).norm() < 3e-3 * mean.norm()
        assert (in_half[1] - std).norm() < 3e-3 * std.norm()
        assert {each.dtype for each in in_half} == {torch.float32}
        assert (model.decode(LATENTS).float() - pixels).abs().max() < 2 / 255
    assert model.vae.dtype == torch.float16


def test_one_that_overflows_computes_in_float32_from_there_on(model: DiffusersModel) -> None:
    weight = model.vae.post_quant_conv.weight
    with torch.no_grad():
        weight *= 2.0**14  # a norm takes it out again, in float32
        wanted = model.decode(16 * LATENTS)
        model.vae.half()
        torch.testing.assert_close(model.decode(16 * LATENTS), wanted, rtol=0, atol=0.05)
    assert model.vae.dtype == torch.float32


def test_a_gradient_is_computed_in_float32(model: DiffusersModel) -> None:
    """Estimates of clean latents can be large, which overflows, and the gradient of a mean over pixels is small."""
    latents = LATENTS.clone().requires_grad_()
    model.vae.half()
    assert model.decode(latents).dtype == torch.float32


@pytest.mark.parametrize("room", [2, 1, 0])
def test_where_memory_runs_out_images_come_one_by_one_then_in_tiles(
    room: int, model: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is room for `room` images of 768 px at once."""
    monkeypatch.setattr(MemoryManager, "has_room", lambda memory, needed: True)
    seen: list[tuple[int, ...]] = []

    def encode(some: torch.Tensor) -> torch.Tensor:
        tiled = model.vae.use_tiling
        if not tiled and len(some) > room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        seen.append((len(some), model.vae.tile_latent_min_size if tiled else 0))
        return some

    vae = Vae(model.vae, model.memory)
    given = torch.zeros(2, 3, 768, 768)
    assert torch.equal(vae._in_parts(encode, given, 1, 8), given)
    assert seen == {2: [(2, 0)], 1: [(1, 0)] * 2, 0: [(1, TILES[0])] * 2}[room]
    assert not model.vae.use_tiling
