"""Generates images: classifier-free guidance with diffusers' DPM-Solver++ (2M)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from PIL import Image

from ti_trainer.host import GenerationRequest
from ti_trainer.hosts.diffusers.model import DiffusersModel
from ti_trainer.model import Conditioning, ImageConditioning, Vectors

NEARLY_NOISE = 2**-24  # the smallest alphas_cumprod: samplers divide by it, and it is 0 for a zero terminal SNR


def generate(model: DiffusersModel, request: GenerationRequest, embeddings: Mapping[str, Vectors]) -> Image.Image:
    """One image. It has its own random generator: the same request gives the same image."""
    return generate_batch(model, [request], embeddings)[0]


@torch.no_grad()
def generate_batch(
    model: DiffusersModel, requests: Sequence[GenerationRequest], embeddings: Mapping[str, Vectors]
) -> list[Image.Image]:
    """N images at once, which differ in prompts and seeds only; everything else is as in the first request."""
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler  # imports scipy

    scheduler = DPMSolverMultistepScheduler(
        trained_betas=_betas(model.alphas_cumprod.cpu().clamp(min=NEARLY_NOISE)),
        prediction_type=model.spec.prediction_type,
        final_sigmas_type="sigma_min",
        timestep_spacing="trailing",
    )
    first, count = requests[0], len(requests)
    scheduler.set_timesteps(first.steps, device=model.device)
    cond = model.encode_prompts(
        [*(each.negative_prompt for each in requests), *(each.prompt for each in requests)], embeddings
    )
    if cond.pooled is not None:  # SDXL's empty negative prompt is zeros, as in the WebUI and diffusers
        kept = [float(bool(each.negative_prompt)) for each in requests] + [1.0] * count
        of_text = torch.tensor(kept, device=model.device)  # (2 N,)
        cond = Conditioning(cond.hidden * of_text[:, None, None], cond.pooled * of_text[:, None])
    width, height = (side or model.default_size_px for side in (first.width, first.height))
    images = whole_image(model, width, height).repeat(2 * count)
    shape = (1, model.vae.config.latent_channels, height // 8, width // 8)
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(each.seed)) for each in requests]
    latents = torch.cat(noise).to(model.device)  # (N, C, height / 8, width / 8)
    for timestep in scheduler.timesteps:
        guided = _guided(model, latents, timestep, cond, images, first.cfg_scale)
        latents = scheduler.step(guided, timestep, latents, return_dict=False)[0]
    pixels = model.decode(latents).float().cpu().clamp(-1, 1)  # (N, 3, height, width)
    as_bytes = ((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(each) for each in as_bytes]


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
    timesteps = timestep.repeat(2 * len(latents))
    uncond, text = model.predict(latents.repeat(2, 1, 1, 1), timesteps, cond, images).float().chunk(2)
    return uncond + cfg_scale * (text - uncond)


def _betas(alphas_cumprod: torch.Tensor) -> list[float]:
    before = torch.cat([torch.ones(1, dtype=torch.float64), alphas_cumprod[:-1].double()])
    return (1 - alphas_cumprod.double() / before).tolist()
