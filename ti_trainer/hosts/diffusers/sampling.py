"""Generates images: classifier-free guidance with diffusers' DPM-Solver++ (2M)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from PIL import Image

from ti_trainer.host import GenerationRequest
from ti_trainer.hosts.diffusers.model import DiffusersModel
from ti_trainer.model import Conditioning, ImageConditioning, Vectors

NEARLY_NOISE = 2**-24  # the smallest alphas_cumprod: samplers divide by it, and it is 0 for a zero terminal SNR


@torch.no_grad()
def generate(model: DiffusersModel, request: GenerationRequest, embeddings: Mapping[str, Vectors]) -> Image.Image:
    """One image. It has its own random generator: the same request gives the same image."""
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler  # imports scipy

    scheduler = DPMSolverMultistepScheduler(
        trained_betas=_betas(model.alphas_cumprod.cpu().clamp(min=NEARLY_NOISE)),
        prediction_type=model.spec.prediction_type,
        final_sigmas_type="sigma_min",
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(request.steps, device=model.device)
    cond = model.encode_prompts([request.negative_prompt, request.prompt], embeddings)
    if (
        not request.negative_prompt and cond.pooled is not None
    ):  # SDXL's empty negative prompt is zeros, as in the WebUI and diffusers
        of_text = torch.tensor([0.0, 1.0], device=model.device)
        cond = Conditioning(cond.hidden * of_text[:, None, None], cond.pooled * of_text[:, None])
    width, height = (side or model.default_size_px for side in (request.width, request.height))
    images = whole_image(model, width, height).repeat(2)
    generator = torch.Generator().manual_seed(request.seed)
    latents = torch.randn(1, model.vae.config.latent_channels, height // 8, width // 8, generator=generator).to(model.device)
    for timestep in scheduler.timesteps:
        guided = _guided(model, latents, timestep, cond, images, request.cfg_scale)
        latents = scheduler.step(guided, timestep, latents, generator=generator, return_dict=False)[0]
    pixels = model.decode(latents)[0].float().cpu().clamp(-1, 1)  # (3, height, width)
    return Image.fromarray(((pixels + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy())


def whole_image(model: DiffusersModel, width: int, height: int) -> ImageConditioning:
    """Conditioning for a new image of this size, not cropped, and with all of it masked."""
    sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32, device=model.device)
    return ImageConditioning(sizes, model.encode_masked(torch.zeros(1, 3, height, width), None))


def _guided(
    model: DiffusersModel,
    latents: torch.Tensor,
    timestep: torch.Tensor,
    cond: Conditioning,
    images: ImageConditioning,
    cfg_scale: float,
) -> torch.Tensor:
    uncond, text = model.predict(latents.repeat(2, 1, 1, 1), timestep.repeat(2), cond, images).float().chunk(2)
    return uncond + cfg_scale * (text - uncond)


def _betas(alphas_cumprod: torch.Tensor) -> list[float]:
    before = torch.cat([torch.ones(1, dtype=torch.float64), alphas_cumprod[:-1].double()])
    return (1 - alphas_cumprod.double() / before).tolist()
