"""The Host inside Forge and its forks: their queue and loaded checkpoint. Imported only inside them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import safetensors.torch
import torch
from backend import attention, memory_management, stream
from backend.text_processing import emphasis
from modules import devices, paths, sd_models, shared
from modules.call_queue import queue_lock
from PIL import Image
from torch import Tensor, nn

from ti_trainer.errors import ConfigError, ModelError
from ti_trainer.functional.transfer import sent
from ti_trainer.host import GenerationRequest, Host, ModelOptions, ModelReference
from ti_trainer.hosts.detection import reports_failures
from ti_trainer.hosts.forge import variants
from ti_trainer.hosts.forge.engine import EngineView, prompt_encoders, text_engines
from ti_trainer.hosts.forge.model_spec import spec_of
from ti_trainer.hosts.forge.patches import trainable_unet
from ti_trainer.hosts.forge.sampling import SAMPLING
from ti_trainer.hosts.webui import cards, generation, lease
from ti_trainer.hosts.webui.model import RuntimeSettings, WebuiModel
from ti_trainer.hosts.webui.patches import replace_inference_tensors
from ti_trainer.hosts.webui.settings import WebuiSettings, reference_of
from ti_trainer.hosts.webui.text import REMEMBERED, Emphasize
from ti_trainer.model import DiffusionModel, Vectors
from ti_trainer.offload.patching import Change, patched


@dataclass(frozen=True)
class ForgeHost(WebuiSettings):
    """Forge, and its forks that keep its package `backend`: ersatzForge and Forge Neo."""

    @reports_failures
    def describe(self) -> str:
        """The loaded checkpoint, or else the chosen one; ModelError if it cannot be trained."""
        data = sd_models.model_data
        if not variants.is_current(data):
            return f"{_chosen().model_name}, not loaded yet"
        engine = data.sd_model
        spec = spec_of(engine, zero_terminal_snr=generation.samples_zero_terminal_snr())
        return f"{engine.sd_checkpoint_info.model_name} ({spec})"

    @reports_failures
    def chosen_model(self) -> ModelReference:
        """The checkpoint that is chosen at the top of the page; ModelError if there is none."""
        return reference_of(_chosen())

    @reports_failures
    def open_model(self, options: ModelOptions | None = None) -> WebuiModel:
        """The chosen checkpoint, which is loaded if it is not yet; ModelError if it cannot be trained.

        It is not changed, so this can be called at any time. While Forge generates or trains, threads without the lease get
        the model that is loaded.
        """
        options = options or ModelOptions(clip_skip=self.defaults["clip_skip"])
        if options.precision != "auto":
            found = f"Precision: found {options.precision}"
            message = f"{found}, expected auto: Forge chooses the precision when it loads a checkpoint."
            raise ConfigError(message, "precision")
        engine, loaded_with = _loaded()
        spec = spec_of(engine, options, zero_terminal_snr=generation.samples_zero_terminal_snr())
        device = torch.device(devices.device)
        with torch.inference_mode(False):
            view = EngineView(engine, loaded_with)
        option = emphasis.get_current_option(shared.opts.emphasis)
        texts = prompt_encoders(engine, device, option, _emphasize(option), options.clip_skip)
        objects = engine.forge_objects_original
        settings = RuntimeSettings(
            device=device,
            unet_dtype=objects.unet.model.diffusion_model.computation_dtype,
            fp32_attention=variants.upcasts_attention(attention),
            clear_networks=partial(_take_networks, engine),
            weights_in_ram=True,
            prepare_vae=partial(_take, objects.vae.patcher),
            unet_changes=_unet_changes,
        )
        return WebuiModel(view, spec, texts, settings)

    @contextmanager
    def lock(self) -> Iterator[lease.WebuiLease]:
        """Wait for Forge's queue and hold it. `open_model` loads the chosen checkpoint, if a caller needs one."""
        with lease.acquired() as acquired:
            yield acquired

    def generate(self, model: DiffusionModel, request: GenerationRequest, embeddings: Mapping[str, Vectors]) -> Image.Image:
        """Generate an image with Forge's own sampling and a model that `open_model` returned. Call it within `lock`."""
        return generation.generate(model, request, embeddings, SAMPLING)

    def embeddings_changed(self) -> None:
        """Read the folder again: Forge does not notice a new or overwritten file. Call it within `lock`."""
        engine = sd_models.model_data.sd_model
        with patched(_loaders_that_rename_nothing()):
            for each in text_engines(engine) if variants.is_engine(engine) else ():
                each.embeddings.load_textual_inversion_embeddings()
            page = importlib.import_module("modules.ui_extra_networks_textual_inversion")
            cards.update(variants.read_cards(page.embedding_db))
        generation.forget_conditioning()


_: type[Host] = ForgeHost


def _chosen() -> sd_models.CheckpointInfo:
    found = sd_models.model_data.forge_loading_parameters.get("checkpoint_info")
    if found is None:
        message = (
            "No checkpoint is chosen: choose one at the top of the page. "
            f"If none is listed, put one into {paths.models_path}/Stable-diffusion and refresh the list first."
        )
        raise ModelError(message)
    return found


def _loaded() -> tuple[Any, Mapping[str, Any]]:
    """The engine of the chosen checkpoint, and the parameters that it was loaded with."""
    data = sd_models.model_data
    _chosen()
    if variants.is_current(data):
        return data.sd_model, data.forge_loading_parameters
    if lease.is_held_here():
        return _load()
    if queue_lock.acquire(blocking=False):
        try:
            return _load()
        finally:
            queue_lock.release()
    if variants.is_engine(data.sd_model):
        return data.sd_model, {}  # not for generating, which needs the lease
    message = "No checkpoint is loaded yet, and Forge is busy: wait until it has finished."
    raise ModelError(message)


def _load() -> tuple[Any, Mapping[str, Any]]:
    """Load the chosen checkpoint, unless it is loaded. Only while holding the queue."""
    data = sd_models.model_data
    loaded_with = data.forge_loading_parameters
    try:
        with patched(_loaders_that_rename_nothing()):
            engine, _ = sd_models.forge_model_reload()
    except Exception as error:  # whatever a file can cause
        data.forge_hash = ""  # otherwise Forge would take the last checkpoint, which is gone, for loaded
        reason = str(error).strip().rstrip(".") or type(error).__name__
        message = f"{_chosen().model_name} could not be loaded ({reason}): choose another checkpoint."
        raise ModelError(message) from error
    if not variants.is_engine(engine):
        message = (
            f"{_chosen().model_name} could not be loaded (Forge does not recognize its type): choose another checkpoint."
        )
        raise ModelError(message)
    return engine, loaded_with


def _take_networks(engine: Any) -> None:
    """Take all networks out of Forge's memory management, without LoRAs and fit for training, and free its device."""
    objects = engine.forge_objects_original
    with torch.inference_mode():  # see _take
        memory_management.unload_all_models()
    for patcher in (objects.unet, objects.clip.patcher, objects.vae.patcher):
        _take(patcher)
    for each in text_engines(engine):
        tables = each.text_encoder.transformer.text_model.embeddings
        for table in (tables.token_embedding, tables.position_embedding):
            table.to(torch.float32)  # as Forge does when it encodes its first prompt


def _take(patcher: Any) -> None:
    """Take a network out of Forge's memory management, into RAM and fit for training. Forge brings it back by itself.

    Its weights are moved in inference mode: outside of it, moved inference tensors are unusable in either mode.
    """
    for loaded in list(memory_management.current_loaded_models):
        if loaded.model is not None and loaded.model.model is patcher.model:
            with torch.inference_mode():
                loaded.model_unload()
            memory_management.current_loaded_models.remove(loaded)
    patcher.refresh_loras()  # LoRAs of the last image are still in the weights
    replace_inference_tensors(patcher.model)


def _unet_changes(unet: nn.Module) -> Iterator[Change]:
    yield from trainable_unet(unet)
    yield stream, "mover_stream", None  # no asynchronous copies of weights: training offloads them by itself
    for name in ("classic_engine", "sd_engine"):  # the second is the newest Neo's
        if module := _imported(f"backend.text_processing.{name}"):
            yield from variants.silent(module)


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _loaders_that_rename_nothing() -> Sequence[Change]:
    """Changes for `patched`. Forge's own loaders rename a file that cannot be loaded: an embedding, or the checkpoint."""
    loaders = ((torch, "load"), (safetensors.torch, "load_file"))
    return [(module, name, vars(module)[f"{name}_origin"]) for module, name in loaders if f"{name}_origin" in vars(module)]


def _emphasize(option: Any) -> Emphasize:
    @lru_cache(REMEMBERED)  # otherwise the CPU waits for the GPU each time
    def on_device(multipliers: tuple[float, ...], device: torch.device) -> Tensor:
        return sent(torch.tensor([multipliers]), device)

    def emphasize(hidden: Tensor, ids: Sequence[int], multipliers: Sequence[float]) -> Tensor:
        return variants.apply_emphasis(option(), hidden, list(ids), on_device(tuple(multipliers), hidden.device).to(hidden))

    return emphasize
