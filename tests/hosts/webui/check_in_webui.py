"""Our numbers against the WebUI's own, to be called in the process of a running WebUI while its queue is held.

`compare` needs a checkpoint chosen there, in fp32, and leaves everything as it was.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

WORD = "zz-probe"
PROMPTS = {
    "start": f"{WORD} in a garden",
    "middle": f"a photo of {WORD}, sitting",
    "end": f"a photo of {WORD}",
    "twice": f"{WORD} beside {WORD}",
    "emphasised": f"a (photo:1.3) of ({WORD}:1.2), [old] house",
    "after a break": f"a red house BREAK a photo of {WORD}",
    "across chunks": ", ".join(["a small red round thing"] * 12) + f", {WORD} " + "and more " * 40,
    "no room left": "thing " * 73 + f"{WORD} thing",
    "without": "a photo of a cat",
    "empty": "",
}


def compare(clip_skip: int | None = None) -> dict[str, float]:
    """The largest difference of text conditioning by kind of prompt, of predictions and of latents."""
    from modules import devices, shared
    from modules.sd_hijack import model_hijack
    from modules.textual_inversion.textual_inversion import Embedding

    from ti_trainer.hosts.webui.host import WebuiHost

    host = WebuiHost()
    model = host.open_model(clip_skip=clip_skip or host.defaults["clip_skip"])
    network = shared.sd_model
    generator = torch.Generator().manual_seed(1)
    (encoder, width), *_ = model.widths.items()
    vectors = (torch.randn(3, width, generator=generator) * 0.02).to(model.device)
    embedding = Embedding(vectors, WORD)
    embedding.vectors, embedding.shape = vectors.shape
    before = _state(model_hijack)
    ours = {name: model.encode_prompts([prompt], {WORD: {encoder: vectors}}).hidden for name, prompt in PROMPTS.items()}
    both = model.encode_prompts([PROMPTS["end"], PROMPTS["across chunks"]], {WORD: {encoder: vectors}}).hidden
    assert _state(model_hijack) == before, "encoding left something in the host"
    differences = {}
    with torch.no_grad(), devices.autocast():
        model_hijack.embedding_db.register_embedding(embedding, network)
        try:
            hosts = {name: network.cond_stage_model([prompt]) for name, prompt in PROMPTS.items()}
        finally:
            model_hijack.embedding_db.register_embedding_by_name(None, network, WORD)
            model_hijack.clear_comments()
    for name in PROMPTS:
        differences[f"text, {name}"] = _difference(ours[name], hosts[name])
    differences["text, two at once"] = _difference(both[1:], hosts["across chunks"])
    differences["the word does nothing"] = float(torch.equal(hosts["end"], hosts["without"]))
    return differences | _images(model, network, generator, hosts["middle"])


def _images(model: Any, network: Any, generator: torch.Generator, hidden: Tensor) -> dict[str, float]:
    from modules import devices

    from ti_trainer.model import Conditioning

    latents = torch.randn(2, 4, 8, 8, generator=generator).to(model.device)
    pixels = (torch.rand(2, 3, 64, 64, generator=generator) * 2 - 1).to(model.device)
    timesteps = torch.tensor([3, 961], device=model.device)
    cond = hidden.expand(2, -1, -1)
    with torch.no_grad():
        hosts = network.apply_model(latents, timesteps, cond)
        ours = model.predict(latents, timesteps, Conditioning(cond))
        mean, std = model.encode_images(pixels)
        with devices.without_autocast():
            distribution = network.encode_first_stage(pixels.to(network.first_stage_model.dtype))
            decoded = network.decode_first_stage(latents.to(network.first_stage_model.dtype))
        torch.manual_seed(1)
        noise = torch.randn(distribution.mean.shape)
        torch.manual_seed(1)
        sample = network.get_first_stage_encoding(distribution)
        return {
            "prediction": _difference(ours, hosts),
            "latents": _difference(mean + std * noise.to(mean.device), sample),
            "pixels": _difference(model.decode(latents), decoded),
        }


def _state(hijack: Any) -> tuple[Any, ...]:
    database = hijack.embedding_db
    lists = id(database.word_embeddings), id(database.ids_lookup), id(hijack.extra_generation_params), id(hijack.comments)
    words = sorted(database.word_embeddings), {key: len(pairs) for key, pairs in database.ids_lookup.items()}
    return lists, words, dict(hijack.extra_generation_params), list(hijack.comments), hijack.fixes


def _difference(ours: Tensor, hosts: Tensor) -> float:
    assert ours.shape == hosts.shape, f"{tuple(ours.shape)} instead of {tuple(hosts.shape)}"
    return (ours.float() - hosts.float()).abs().max().item()
