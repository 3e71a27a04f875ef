"""Our numbers against the WebUI's own, to be called in the process of a running WebUI while its queue is held.

`compare` and `compare_file` need a checkpoint chosen there, in fp32, and leave everything as it was.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

WORD = "zz-probe"
PROMPTS = {
    "start": "{} in a garden",
    "middle": "a photo of {}, sitting",
    "end": "a photo of {}",
    "twice": "{0} beside {0}",
    "emphasised": "a (photo:1.3) of ({}:1.2), [old] house",
    "after a break": "a red house BREAK a photo of {}",
    "across chunks": ", ".join(["a small red round thing"] * 12) + ", {} " + "and more " * 40,
    "no room left": "thing " * 73 + "{} thing",
    "without": "a photo of a cat",
    "empty": "",
}
SIZE_PX = 64


def compare(clip_skip: int | None = None) -> dict[str, float]:
    """The largest difference of text conditioning by kind of prompt, of predictions and of latents."""
    from modules import shared
    from modules.sd_hijack import model_hijack

    from ti_trainer.host import ModelOptions
    from ti_trainer.hosts.webui.generation import host_embedding
    from ti_trainer.hosts.webui.host import WebuiHost
    from ti_trainer.hosts.webui.sampling import SAMPLING

    host = WebuiHost(is_public=False)
    model = host.open_model(ModelOptions(clip_skip=clip_skip or host.defaults["clip_skip"]))
    network = shared.sd_model
    generator = torch.Generator().manual_seed(1)
    vectors = {
        encoder: (torch.randn(3, width, generator=generator) * 0.02).to(model.device)
        for encoder, width in model.widths.items()
    }
    embedding = host_embedding(SAMPLING, WORD, vectors, model)
    database = model_hijack.embedding_db
    database.register_embedding(embedding, network)
    try:
        differences = _texts(model, network, WORD, vectors, forget=lambda: _unregister(database, network))
    finally:
        _unregister(database, network)
        model_hijack.clear_comments()
    return differences | _images(model, network, generator)


def compare_file(name: str) -> dict[str, float]:
    """The same of text alone, with the vectors of an embedding's file: read by us, and by the host as it found it."""
    from modules import shared
    from modules.sd_hijack import model_hijack

    from ti_trainer.formats import embeddings_dir
    from ti_trainer.hosts.webui.host import WebuiHost

    host = WebuiHost(is_public=False)
    vectors = embeddings_dir.load(host.embeddings_dir, name)[0].vectors
    try:
        return _texts(host.open_model(), shared.sd_model, name, vectors)
    finally:
        model_hijack.clear_comments()


def _texts(model: Any, network: Any, name: str, vectors: dict[str, Tensor], forget: Any = lambda: None) -> dict[str, float]:
    """What the host makes of prompts while it knows the word, and what we do then, when it may have forgotten it."""
    from modules import devices
    from modules.sd_hijack import model_hijack

    prompts = {kind: prompt.format(name) for kind, prompt in PROMPTS.items()}
    with torch.no_grad(), devices.autocast():
        hosts = {kind: _condition(network, prompt) for kind, prompt in prompts.items()}
    forget()
    before = _state(model_hijack)
    ours = {kind: model.encode_prompts([prompt], {name: vectors}) for kind, prompt in prompts.items()}
    both = model.encode_prompts([prompts["end"], prompts["across chunks"]], {name: vectors})
    assert _state(model_hijack) == before, "encoding left something in the host"
    differences = {}
    for kind, cond in ours.items():
        differences[f"text, {kind}"] = _difference(cond.hidden, hosts[kind]["crossattn"])
        if cond.pooled is not None:
            pooled = hosts[kind]["vector"][:, : cond.pooled.shape[1]]
            differences[f"pooled, {kind}"] = _difference(cond.pooled, pooled)
    differences["text, two at once"] = _difference(both.hidden[1:], hosts["across chunks"]["crossattn"])
    differences["the word does nothing"] = float(torch.equal(hosts["end"]["crossattn"], hosts["without"]["crossattn"]))
    return differences


def _condition(network: Any, prompt: str) -> dict[str, Tensor]:
    """By the host's own function for it."""
    from modules.prompt_parser import SdConditioning

    found = network.get_learned_conditioning(SdConditioning([prompt], width=SIZE_PX, height=SIZE_PX))
    return found if isinstance(found, dict) else {"crossattn": found}


def _images(model: Any, network: Any, generator: torch.Generator) -> dict[str, float]:
    from modules import devices

    from ti_trainer.hosts.webui.forks import is_fork
    from ti_trainer.hosts.webui.vae import dtype_of
    from ti_trainer.model import ImageConditioning

    dtype = dtype_of(network.first_stage_model)
    latents = torch.randn(2, 4, 8, 8, generator=generator).to(model.device)
    masked = torch.randn(2, 5, 8, 8, generator=generator).to(model.device)
    pixels = (torch.rand(2, 3, SIZE_PX, SIZE_PX, generator=generator) * 2 - 1).to(model.device)
    timesteps = torch.tensor([3, 961], device=model.device)
    sizes = torch.tensor([[SIZE_PX, SIZE_PX, 0, 0, SIZE_PX, SIZE_PX]] * 2, device=model.device).float()
    with torch.no_grad():
        hosts = network.apply_model(latents, timesteps, _told(model, _condition(network, "a red star"), masked))
        cond = model.encode_prompts(["a red star"] * 2, {})
        ours = model.predict(latents, timesteps, cond, ImageConditioning(sizes, masked))
        mean, std = model.encode_images(pixels)
        torch.manual_seed(1)
        noise = torch.randn(mean.shape)
        torch.manual_seed(1)
        with devices.without_autocast():
            sample = network.get_first_stage_encoding(network.encode_first_stage(pixels.to(dtype)))
            decoded = network.decode_first_stage(latents.to(dtype))
        encoded, restored = mean + std * noise.to(mean.device), model.decode(latents)
        if is_fork(network):  # reForge encodes without noise, and limits what it decodes
            encoded, restored = mean, restored.clamp(-1, 1)
        return {
            "prediction": _difference(ours, hosts),
            "latents": _difference(encoded, sample),
            "pixels": _difference(restored, decoded),
        }


def _told(model: Any, cond: dict[str, Tensor], masked: Tensor) -> Any:
    """The conditioning of a batch of 2 as the host's samplers put it together."""
    cond = {key: each.repeat(2, *[1] * (each.ndim - 1)) for key, each in cond.items()}
    concatenated = {"c_concat": [masked]} if model.spec.inpainting else {}
    if "vector" in cond:
        return cond | concatenated
    return {"c_crossattn": [cond["crossattn"]], **concatenated}


def _unregister(database: Any, network: Any) -> None:
    if WORD in database.word_embeddings:
        database.register_embedding_by_name(None, network, WORD)


def _state(hijack: Any) -> tuple[Any, ...]:
    database = hijack.embedding_db
    lists = id(database.word_embeddings), id(database.ids_lookup), id(hijack.extra_generation_params), id(hijack.comments)
    words = sorted(database.word_embeddings), {key: len(pairs) for key, pairs in database.ids_lookup.items()}
    return lists, words, dict(hijack.extra_generation_params), list(hijack.comments), hijack.fixes


def _difference(ours: Tensor, hosts: Tensor) -> float:
    assert ours.shape == hosts.shape, f"{tuple(ours.shape)} instead of {tuple(hosts.shape)}"
    return (ours.float() - hosts.float()).abs().max().item()
