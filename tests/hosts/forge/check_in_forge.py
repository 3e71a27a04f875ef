"""Our numbers against Forge's own, to be called in the process of a running Forge, while nothing holds its queue.

`compare` needs a checkpoint of SD 1.x, SD 2.x or SDXL chosen there, and leaves everything as it was. On a CPU it takes a few
minutes with a checkpoint of real size.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor

NAME = "zz-probe"
PROMPTS = {
    "middle": "a photo of {}, sitting",
    "end": "a photo of {}",
    "plain": "a photo of",
    "twice": "{0} beside {0}",
    "emphasised": "a (photo:1.3) of ({}:1.2), [old] house",
    "after a break": "a red house BREAK a photo of {}",
    "across chunks": ", ".join(["a small red round thing"] * 12) + ", {} " + "and more " * 40,
    "without": "a photo of a cat",
    "empty": "",
}
MODES = ("none", "checkpointing", "offload-text", "offload-all", "offload-vae")
SIZE_PX = 64


def compare(modes: tuple[str, ...] = MODES) -> dict[str, Any]:
    """Largest differences of conditioning, prediction, latents, gradients by memory mode, and pixels before and after."""
    from ti_trainer.hosts.forge.host import ForgeHost

    host = ForgeHost(is_public=False)
    with host.lock():
        model = host.open_model()
        generator = torch.Generator().manual_seed(1)
        vectors = {
            encoder: (torch.randn(2, width, generator=generator) * 0.02).to(model.device)
            for encoder, width in model.widths.items()
        }
        found: dict[str, Any] = {"spec": str(model.spec)}
        before, state = _image(), _state(model)
        found |= _texts(model, vectors)
        found |= _numbers(model, generator)
        found |= _gradients(model, vectors, modes)
        found |= _previews(host, model, vectors)
        found["left behind"] = _changed(state, _state(model))
        found["pixels changed"] = int(np.count_nonzero(before != _image()))
        return found


def compare_file(name: str) -> dict[str, float]:
    """The same of text alone, with the vectors of an embedding's file: read by us, and by Forge as it found it."""
    from ti_trainer.formats import embeddings_dir
    from ti_trainer.hosts.forge.host import ForgeHost

    host = ForgeHost(is_public=False)
    vectors = embeddings_dir.load(host.embeddings_dir, name)[0].vectors
    with host.lock():
        model = host.open_model()
        hosts = _conditioning(model.sd_model.engine, name)
        differences = _differences(model, name, vectors, hosts)
    return differences | {
        "the word does nothing": float(_difference(hosts["end"]["crossattn"], hosts["plain"]["crossattn"]) == 0)
    }


def _texts(model: Any, vectors: dict[str, Tensor]) -> dict[str, float]:
    """What Forge makes of prompts while it knows the embedding, and what we make of them when it has forgotten it."""
    from ti_trainer.hosts.forge.sampling import SAMPLING
    from ti_trainer.hosts.webui.generation import host_embedding
    from ti_trainer.hosts.webui.text import registered

    with ExitStack() as stack:
        for text in model.texts:
            stack.enter_context(registered(text.finder, {NAME: host_embedding(SAMPLING, NAME, vectors, model)}))
        hosts = _conditioning(model.sd_model.engine, NAME)
    return _differences(model, NAME, vectors, hosts)


def _conditioning(engine: Any, name: str) -> dict[str, dict[str, Tensor]]:
    """Forge's own, by kind of prompt."""
    from modules.prompt_parser import SdConditioning

    hosts = {}
    for kind, prompt in PROMPTS.items():
        asked = SdConditioning([prompt.format(name)], width=SIZE_PX, height=SIZE_PX)
        found = engine.get_learned_conditioning(asked)
        hosts[kind] = found if isinstance(found, dict) else {"crossattn": found}
    return hosts


def _differences(model: Any, name: str, vectors: dict[str, Tensor], hosts: dict[str, dict[str, Tensor]]) -> dict[str, float]:
    differences = {}
    with torch.no_grad():
        for kind, prompt in PROMPTS.items():
            cond = model.encode_prompts([prompt.format(name)], {name: vectors})
            differences[f"text, {kind}"] = _difference(cond.hidden, hosts[kind]["crossattn"])
            if cond.pooled is not None:
                pooled = hosts[kind]["vector"][:, : cond.pooled.shape[1]]
                differences[f"pooled, {kind}"] = _difference(cond.pooled, pooled)
    return differences


def _numbers(model: Any, generator: torch.Generator) -> dict[str, float]:
    from backend import memory_management
    from modules.prompt_parser import SdConditioning

    from ti_trainer.functional.objective import add_noise
    from ti_trainer.model import ImageConditioning

    engine, device = model.sd_model.engine, model.device
    latents, noise = (torch.randn(2, 4, 8, 8, generator=generator).to(device) for _ in range(2))
    masked = torch.randn(2, 5, 8, 8, generator=generator).to(device) if model.spec.inpainting else None
    timesteps = torch.tensor([3, 961], device=device)
    prompt = SdConditioning(["a red star"] * 2, width=SIZE_PX, height=SIZE_PX)
    conditioning = engine.get_learned_conditioning(prompt)
    told: dict[str, Any] = {"c_crossattn": conditioning}
    if isinstance(conditioning, dict):
        told = {"c_crossattn": conditioning["crossattn"], "y": conditioning["vector"]}
    if masked is not None:
        told["c_concat"] = masked
    unet = engine.forge_objects_original.unet
    memory_management.load_models_gpu([unet])
    predictor = unet.model.predictor
    sigma = predictor.sigma(timesteps)
    wide = sigma.view(-1, 1, 1, 1)
    noisy = (latents + wide * noise) / (1 + wide**2).sqrt()  # as alphas_cumprod scales it
    with torch.inference_mode():
        denoised = unet.model.apply_model(latents + wide * noise, sigma, transformer_options={}, **told)
    sizes = torch.tensor([[SIZE_PX, SIZE_PX, 0, 0, SIZE_PX, SIZE_PX]] * 2, device=device).float()
    with torch.no_grad():
        cond = model.encode_prompts(["a red star"] * 2, {})
        ours = model.predict(noisy, timesteps, cond, ImageConditioning(sizes, masked)).float()
        again = predictor.calculate_denoised(sigma, ours, latents + wide * noise)
        ours_noisy = add_noise(latents, noise, model.alphas_cumprod[timesteps])
        pixels = (torch.rand(2, 3, SIZE_PX, SIZE_PX, generator=generator) * 2 - 1).to(device)
        mean, std = model.encode_images(pixels)
        torch.manual_seed(1)
        sampled = mean + std * torch.randn(mean.shape).to(mean)
        torch.manual_seed(1)
        hosts = engine.encode_first_stage(pixels).to(device)
        decoded = _difference(model.decode(latents).clamp(-1, 1), engine.decode_first_stage(latents).to(device))
    relative = (1 + wide).clamp_min(1)  # of a denoised latent, which is the prediction times sigma
    return {
        # With zero terminal SNR Forge changes its schedule only while it samples.
        "noising": 0.0 if model.spec.zero_terminal_snr else _difference(ours_noisy, noisy),
        "prediction": ((again - denoised) / relative).abs().max().item(),
        "latents": _difference(sampled, hosts),
        "pixels": decoded,
    }


def _gradients(model: Any, vectors: dict[str, Tensor], modes: tuple[str, ...]) -> dict[str, Any]:
    from ti_trainer.data.dataset import Batch
    from ti_trainer.model import ImageConditioning
    from ti_trainer.training.step import training_loss

    generator = torch.Generator().manual_seed(5)
    latents, noise = (torch.randn(1, 4, 8, 8, generator=generator).to(model.device) for _ in range(2))
    masked = torch.randn(1, 5, 8, 8, generator=generator).to(model.device) if model.spec.inpainting else None
    sizes = torch.tensor([[SIZE_PX, SIZE_PX, 0, 0, SIZE_PX, SIZE_PX]], device=model.device).float()
    timesteps = torch.tensor([400], device=model.device)
    batch = Batch(latents, noise, timesteps, (f"a photo of {NAME}",), None, ImageConditioning(sizes, masked))
    direction = {encoder: torch.randn(each.shape, generator=generator).to(each) for encoder, each in vectors.items()}

    def loss(step: float, of: dict[str, Tensor]) -> Tensor:
        return training_loss(model, batch, {NAME: {key: each + step * direction[key] for key, each in of.items()}}).mean()

    found: dict[str, Any] = {}
    exact: dict[str, Tensor] = {}
    for mode in modes:
        model.fit_memory(64, mode=mode)
        trained = {encoder: each.clone().requires_grad_() for encoder, each in vectors.items()}
        started = time.monotonic()
        with model.training():
            loss(0.0, trained).backward()
        found[f"seconds, {mode}"] = round(time.monotonic() - started, 1)
        gradient = {encoder: each.grad for encoder, each in trained.items()}
        exact = exact or gradient
        scale = max(each.abs().max().item() for each in exact.values())
        found[f"gradient, {mode}"] = max(_difference(gradient[key], exact[key]) for key in exact) / scale
    model.fit_memory(64, mode="none")
    with model.training(), torch.no_grad():
        fine, coarse = ((loss(h, vectors) - loss(-h, vectors)).item() / 2 / h for h in (0.001, 0.002))
        measured = (4 * fine - coarse) / 3  # Richardson: without the error in h squared
    along = sum((exact[key] * direction[key]).sum().item() for key in exact)
    return found | {"gradient": along, "finite difference": measured, "relative": abs(along / measured - 1)}


def _previews(host: Any, model: Any, vectors: dict[str, Tensor]) -> dict[str, Any]:
    """Previews within training: vectors matter, Forge does not know the embedding afterwards, and training continues."""
    from ti_trainer.host import GenerationRequest

    request = GenerationRequest(f"a photo of {NAME}", steps=2, width=SIZE_PX, height=SIZE_PX)
    others = {key: each * -5 for key, each in vectors.items()}
    with model.training():
        images = [np.asarray(host.generate(model, request, {NAME: each})) for each in (vectors, others, vectors)]
        repeated = _gradients(model, vectors, ("none",))
    known = [text.stage.hijack.embedding_db.word_embeddings for text in model.texts]
    return {
        "preview, same vectors": int(np.count_nonzero(images[0] != images[2])),
        "preview, other vectors": int(np.count_nonzero(images[0] != images[1])),
        "preview, word left": sum(NAME in each for each in known),
        "relative after previews": repeated["relative"],
    }


def _image() -> Any:
    """As Forge generates it, (H, W, 3) of uint8."""
    from modules import shared
    from modules.processing import StableDiffusionProcessingTxt2Img, process_images

    p = StableDiffusionProcessingTxt2Img(
        sd_model=shared.sd_model,
        do_not_save_samples=True,
        do_not_save_grid=True,
        prompt="a (red:1.2) star",
        steps=2,
        seed=7,
        width=SIZE_PX,
        height=SIZE_PX,
        sampler_name="Euler",
        scheduler="Automatic",
    )
    p.cached_c, p.cached_uc = [None, None], [None, None]
    return np.asarray(process_images(p).images[0])


def _state(model: Any) -> dict[str, Any]:
    """All that training could leave behind in the networks, without their numbers."""
    modules = [(name, each) for name, each in model.sd_model.named_modules() if name]
    return {
        "own": {name: sorted(vars(each)) for name, each in modules},
        "grad": [name for name, each in model.sd_model.named_parameters() if each.grad is not None],
        "training": {name: each.training for name, each in modules},
        "dtypes": {name: each.dtype for name, each in model.sd_model.named_parameters()},
    }


def _changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [key for key in before if before[key] != after[key]]


def _difference(ours: Tensor, hosts: Tensor) -> float:
    assert ours.shape == hosts.shape, f"{tuple(ours.shape)} instead of {tuple(hosts.shape)}"
    return (ours.float() - hosts.float()).abs().max().item()
