"""Routes by which tests ask the host's own process for numbers. Imported only inside a host, by `checking`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from torch import Tensor

HOSTS = Path(__file__).parents[1] / "hosts"
SIZE_PX = 64


def add_routes(app: Any) -> None:
    """Add `/ti-check/...` to the host's application."""
    for route in (describe, compare, compare_file, conditioning, vectors):
        app.add_api_route(f"/ti-check/{route.__name__.replace('_', '-')}", route, methods=["GET"])


def is_forge() -> bool:
    return importlib.util.find_spec("backend") is not None


def describe() -> str:
    """What the page says of the checkpoint."""
    from ti_trainer.hosts.detection import find_host

    return find_host().describe()


def compare(clip_skip: int = 1) -> dict[str, Any]:
    """Our numbers against the host's own: see check_in_webui and check_in_forge."""
    from modules import call_queue

    if is_forge():  # which takes the lock itself
        return _with_clip_skip(clip_skip, _module("forge", "check_in_forge").compare)
    with call_queue.queue_lock:
        return _with_clip_skip(clip_skip, lambda: _module("webui", "check_in_webui").compare(clip_skip))


def _with_clip_skip(clip_skip: int, call: Any) -> Any:
    from modules import shared

    before = shared.opts.CLIP_stop_at_last_layers
    shared.opts.data["CLIP_stop_at_last_layers"] = clip_skip
    try:
        return call()
    finally:
        shared.opts.data["CLIP_stop_at_last_layers"] = before


def compare_file(name: str) -> dict[str, float]:
    """The same of conditioning alone, with an embedding's file."""
    from modules import call_queue

    if is_forge():
        return _module("forge", "check_in_forge").compare_file(name)
    with call_queue.queue_lock:
        return _module("webui", "check_in_webui").compare_file(name)


def conditioning(prompt: str) -> dict[str, Any]:
    """What the host itself makes of a prompt: `crossattn` (77 k, D) and for SDXL `vector` (P,)."""
    import torch
    from modules import call_queue, devices
    from modules.prompt_parser import SdConditioning

    with call_queue.queue_lock, torch.no_grad(), devices.autocast():
        found = _network().get_learned_conditioning(SdConditioning([prompt], width=SIZE_PX, height=SIZE_PX))
        parts = found if isinstance(found, dict) else {"crossattn": found}
        return {key: each[0].float().tolist() for key, each in parts.items()}


def vectors(name: str) -> dict[str, Any]:
    """An embedding's vectors (V, D) as the host has read them, by text encoder; one without a name is `""`."""
    from modules import call_queue

    with call_queue.queue_lock:
        network = _network()
        database = _embeddings(network)
        found = database.word_embeddings[name].vec
        by_encoder: dict[str, Tensor] = found if isinstance(found, dict) else {"": found}
        return {key: each.float().tolist() for key, each in by_encoder.items()}


def _network() -> Any:
    from modules import sd_models, shared

    if not is_forge():
        return shared.sd_model
    engine, _ = sd_models.forge_model_reload()  # loads a checkpoint only when one is needed
    return engine


def _embeddings(network: Any) -> Any:
    if is_forge():
        engine = "text_processing_engine_l" if network.is_sdxl else "text_processing_engine"
        return getattr(network, engine).embeddings
    from modules.sd_hijack import model_hijack

    return model_hijack.embedding_db


def _module(host: str, name: str) -> Any:
    if (folder := str(HOSTS / host)) not in sys.path:
        sys.path.append(folder)  # the host takes back what scripts add to it when they are loaded
    return importlib.import_module(name)
