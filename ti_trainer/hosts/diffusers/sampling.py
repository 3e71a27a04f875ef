"""Pictures from a model: classifier-free guidance with DPM-Solver++ (2M) of the diffusers library."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image

from ti_trainer.host import Drawing
from ti_trainer.hosts.diffusers.model import DiffusersModel
from ti_trainer.model import Conditioning, Vectors


@torch.no_grad()
def draw(model: DiffusersModel, drawing: Drawing, words: Mapping[str, Vectors]) -> Image.Image:
    """One picture. Its randomness is all its own: the same drawing gives the same picture, whatever went before."""
    scheduler = DPMSolverMultistepScheduler(
        trained_betas=_betas(model.alphas_cumprod.cpu()),
        prediction_type=model.prediction_type,
        final_sigmas_type="sigma_min",
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(drawing.steps, device=model.device)
    cond = model.encode_prompts([drawing.negative_prompt, drawing.prompt], words)
    width, height = (side or model.default_size_px for side in (drawing.width, drawing.height))
    generator = torch.Generator().manual_seed(drawing.seed)
    latents = torch.randn(1, model.vae.config.latent_channels, height // 8, width // 8, generator=generator).to(model.device)
    for timestep in scheduler.timesteps:
        guided = _guided(model, latents, timestep, cond, drawing.cfg_scale)
        latents = scheduler.step(guided, timestep, latents, generator=generator, return_dict=False)[0]
    pixels = model.decode(latents)[0].float().cpu().clamp(-1, 1)  # (3, height, width)
    return Image.fromarray(((pixels + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy())


def _guided(
    model: DiffusersModel, latents: torch.Tensor, timestep: torch.Tensor, cond: Conditioning, cfg_scale: float
) -> torch.Tensor:
    uncond, text = model.predict(latents.repeat(2, 1, 1, 1), timestep.repeat(2), cond).float().chunk(2)
    return uncond + cfg_scale * (text - uncond)


def _betas(alphas_cumprod: torch.Tensor) -> list[float]:
    before = torch.cat([torch.ones(1, dtype=torch.float64), alphas_cumprod[:-1].double()])
    return (1 - alphas_cumprod.double() / before).tolist()
