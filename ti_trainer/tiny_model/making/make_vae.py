"""Train the embedded model's AutoencoderKL on drawn scenes, then its decoder alone with fixed latents.

Widths and normalization are compatible with the WebUI's own classes.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from ti_trainer.tiny_model.making.muon import MuonAndAdam
from ti_trainer.tiny_model.making.scenes import draw_array, random_scene

SCALING_FACTOR = 0.18215  # of Stable Diffusion 1.x


def images(count: int, rng: np.random.Generator) -> Tensor:
    """Random scenes, half of them in arbitrary colours: (count, 3, 64, 64) in [-1, 1]."""
    drawn = np.stack([draw_array(random_scene(rng, any_colours=0.5)[0]) for _ in range(count)])
    return torch.from_numpy(drawn).permute(0, 3, 1, 2) * 2 - 1


def new_vae() -> AutoencoderKL:
    """A new autoencoder like Stable Diffusion's: latents of an eighth of the size, 4 channels."""
    return AutoencoderKL(
        block_out_channels=(32, 32, 64, 96),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=32,
        latent_channels=4,
        sample_size=64,
        scaling_factor=SCALING_FACTOR,
    )


def reconstruction_loss(decoded: Tensor, wanted: Tensor, squares: float) -> Tensor:
    """L1 loss of pixels and of their gradients, plus the squared error times `squares`."""
    error = (decoded - wanted) / 2
    gradient = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + squares * error.square().mean() + 0.5 * gradient


@torch.no_grad()
def psnr(vae: AutoencoderKL, count: int = 256) -> float:
    """Peak signal-to-noise ratio in dB on images that were not trained on."""
    wanted = images(count, np.random.default_rng(12345))
    decoded = torch.cat([vae.decode(vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1) for x in wanted.split(64)])
    return -10 * math.log10(((decoded - wanted) / 2).square().mean().item())


def train(folder: Path, minutes: float, whole: AutoencoderKL | None = None) -> AutoencoderKL:
    """Train a new autoencoder, or only the decoder of `whole`, for a number of minutes.

    Continues from the state in the folder, which is saved every minute.
    """
    stage = "vae" if whole is None else "decoder"
    state_file = folder / f"{stage}.state"
    vae = (whole or new_vae()).to(memory_format=torch.channels_last)
    trained = [vae] if whole is None else [vae.decoder, vae.post_quant_conv]
    optimizer = MuonAndAdam(trained, lr=6e-3 if whole is None else 3e-3, adam_lr=2e-3)
    average = {k: v.detach().clone() for k, v in vae.state_dict().items()}
    step, spent = 0, 0.0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        average, step, spent = state["average"], state["step"], state["spent"]
    started, last_saved = time.monotonic() - spent, time.monotonic()
    while (spent := time.monotonic() - started) < minutes * 60:
        x = images(16, np.random.default_rng((step, whole is None))).contiguous(memory_format=torch.channels_last)
        with torch.set_grad_enabled(whole is None):
            posterior = vae.encode(x).latent_dist
        loss = reconstruction_loss(vae.decode(posterior.sample()).sample, x, squares=2.0 if whole is None else 20.0)
        if whole is None:
            loss = loss + 1e-3 * posterior.kl().mean() / 256
        loss.backward()
        optimizer.step(spent / (minutes * 60), warm=min(1.0, (step + 1) / 50))
        step += 1
        rate = min(0.995, 1 - 1 / (step / 4 + 1))
        for key, value in vae.state_dict().items():
            average[key].lerp_(value, 1 - rate)
        if time.monotonic() - last_saved > 60:
            last_saved = time.monotonic()
            save(state_file, vae, optimizer, average, step, time.monotonic() - started)
            print(f"{stage} step {step}, {spent / 60:.1f} of {minutes} min, loss {loss.item():.4f}", flush=True)
    save(state_file, vae, optimizer, average, step, minutes * 60)
    vae.load_state_dict(average)
    print(f"{stage} step {step}: {psnr(vae):.2f} dB", flush=True)
    return vae


def save(
    path: Path, vae: AutoencoderKL, optimizer: MuonAndAdam, average: dict[str, Tensor], step: int, spent: float
) -> None:
    """Save the state to continue from."""
    new = path.with_suffix(".new")
    state = {"vae": vae.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
    torch.save({**state, "step": step, "spent": spent}, new)
    new.replace(path)
