"""What reForge and Forge Classic do differently from AUTOMATIC1111's WebUI, which they were made from.

Both keep its model classes, around networks of `ldm_patched` that a memory manager moves and that LoRAs are merged into.
Forge Classic also lacks modules and settings of the WebUI, which are optional here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from modules import shared

from ti_trainer.hosts.webui.model_spec import text_stages
from ti_trainer.hosts.webui.patches import replace_inference_tensors, without_inplace_additions
from ti_trainer.offload.patching import Change

FP8 = tuple(getattr(torch, name) for name in ("float8_e4m3fn", "float8_e5m2") if hasattr(torch, name))


def is_fork(sd_model: Any) -> bool:
    """Whether the memory manager of a fork holds the model's networks."""
    return hasattr(sd_model, "forge_objects_original")


def setting(name: str, default: Any = False) -> Any:
    """A setting or command line option of the WebUI; `default` where a fork has removed it."""
    return getattr(shared.opts, name, getattr(shared.cmd_opts, name, default))


def empty_device() -> None:
    """With --medvram: move all networks off the GPU. Forge Classic has removed the module, reForge has emptied it."""
    with suppress(ImportError):
        from modules import lowvram

        lowvram.send_everything_to_cpu()


def unet_dtype(sd_model: Any, default: torch.dtype) -> torch.dtype:
    """The dtype in which the U-Net computes; forks may store its weights in another one, and cast each when it is used."""
    if not is_fork(sd_model):
        return default
    network = sd_model.forge_objects_original.unet.model
    return network.manual_cast_dtype or network.get_dtype()


def is_stored_in_8_bits(sd_model: Any) -> bool:
    """Whether the U-Net's weights are in float8; forks choose that for each checkpoint."""
    return any(each.dtype in FP8 for each in sd_model.model.diffusion_model.parameters())


def clip_l_skips(sd_model: Any, clip_skip: int) -> bool:
    """Whether clip skip applies to SDXL's CLIP-L: by a setting, in reForge from a number on, and never in Forge Classic."""
    least = getattr(text_stages(sd_model)[0], "minimal_clip_skip", None)
    return setting("sdxl_clip_l_skip") is True if least is None else clip_skip > least


def take_networks(sd_model: Any) -> None:
    """Take a fork's networks out of its memory management, into RAM, without LoRAs and fit for training.

    The fork brings them back by itself. It generates in inference mode, and autograd cannot save weights that were moved or
    merged there. They are moved in that mode here too, since they cannot be changed outside of it.
    """
    if not is_fork(sd_model):
        return
    from ldm_patched.modules.model_management import current_loaded_models

    objects = sd_model.forge_objects_original
    networks = (objects.unet.model, objects.clip.patcher.model, objects.vae.first_stage_model)
    with torch.inference_mode():
        for loaded in list(current_loaded_models):
            if loaded.model is not None and any(loaded.model.model is each for each in networks):
                loaded.model_unload()
                current_loaded_models.remove(loaded)
    for network in networks:
        replace_inference_tensors(network)


def unet_changes(unet: torch.nn.Module) -> Iterator[Change]:
    """Changes for `patched` without which a U-Net of `ldm_patched` cannot be trained; reForge's could."""
    if type(unet).__module__.startswith("ldm_patched."):
        yield from without_inplace_additions(unet)


def without_scripts(p: Any) -> None:
    """Run no scripts for an image; reForge fails without a list of them."""
    if is_fork(p.sd_model):
        from modules import scripts

        p.scripts, p.script_args = scripts.ScriptRunner(), []
