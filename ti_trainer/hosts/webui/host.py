"""The Host inside the WebUI: its queue and loaded checkpoint. Imported only inside the WebUI."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from modules import (
    devices,
    extra_networks,
    paths,
    processing,
    sd_emphasis,
    sd_models,
    sd_unet,
    shared,
)
from modules.sd_hijack import model_hijack
from PIL import Image

from ti_trainer.errors import ConfigError, ModelError
from ti_trainer.host import GenerationRequest, Host, ModelOptions, ModelReference
from ti_trainer.hosts.detection import reports_failures
from ti_trainer.hosts.webui import cards, forks, generation, lease
from ti_trainer.hosts.webui.emphasis import emphasis_by
from ti_trainer.hosts.webui.model import RuntimeSettings, WebuiModel
from ti_trainer.hosts.webui.model_spec import spec_of
from ti_trainer.hosts.webui.sampling import SAMPLING
from ti_trainer.hosts.webui.settings import WebuiSettings, reference_of
from ti_trainer.hosts.webui.text import prompt_encoders
from ti_trainer.model import DiffusionModel, Vectors


@dataclass(frozen=True)
class WebuiHost(WebuiSettings):
    """AUTOMATIC1111's WebUI, and the forks of it that keep its model classes: reForge and Forge Classic."""

    @reports_failures
    def describe(self) -> str:
        """The loaded checkpoint, or else the chosen one; ModelError if it cannot be trained."""
        _check_settings()
        sd_model = sd_models.model_data.sd_model
        if sd_model is None:
            return f"{_chosen().model_name}, not loaded yet"
        _check_whole(sd_model)
        spec = spec_of(sd_model, zero_terminal_snr=generation.samples_zero_terminal_snr())
        _check_computing(sd_model)
        return f"{sd_model.sd_checkpoint_info.model_name} ({spec})"

    @reports_failures
    def chosen_model(self) -> ModelReference:
        """The checkpoint that is chosen at the top of the page; ModelError if there is none."""
        return reference_of(_chosen())

    @reports_failures
    def open_model(self, options: ModelOptions | None = None) -> WebuiModel:
        """The loaded checkpoint; ModelError if it cannot be trained.

        It is not changed, so this can be called at any time; `lock` prepares it for computing.
        """
        options = options or ModelOptions(clip_skip=self.defaults["clip_skip"])
        if options.precision != "auto":
            found = f"Precision: found {options.precision}"
            message = f"{found}, expected auto: the precision is chosen when the WebUI is started (--no-half)."
            raise ConfigError(message, "precision")
        _check_settings()
        _chosen()
        sd_model = sd_models.model_data.get_sd_model()  # loads it if that has not been tried yet
        if sd_model is None:
            message = "No checkpoint is loaded. Wait if one is being loaded, or choose one at the top of the page."
            raise ModelError(message)
        _check_whole(sd_model)
        spec = spec_of(sd_model, options, zero_terminal_snr=generation.samples_zero_terminal_snr())
        _check_computing(sd_model)
        device, opts = torch.device(devices.device), shared.opts
        clip_l_skip = spec.family == "SDXL" and forks.clip_l_skips(sd_model, options.clip_skip)
        emphasize = emphasis_by(sd_emphasis.get_current_option(opts.emphasis))
        texts = prompt_encoders(sd_model, device, emphasize, options.clip_skip, clip_l_skip=clip_l_skip)
        settings = RuntimeSettings(
            device=device,
            unet_dtype=forks.unet_dtype(sd_model, devices.dtype_unet),
            autocast=devices.autocast,
            fp32_attention=opts.upcast_attn,
            vae_to_ram=forks.setting("unload_models_when_training"),
            clear_networks=_clear_networks,
            empty_device=forks.empty_device,
            weights_in_ram=forks.is_fork(sd_model),
            unet_changes=forks.unet_changes,
        )
        return WebuiModel(sd_model, spec, texts, settings)

    @contextmanager
    def lock(self) -> Iterator[lease.WebuiLease]:
        """Wait for the WebUI's queue and hold it; then the chosen checkpoint is loaded."""
        with lease.acquired() as acquired:
            _prepare_checkpoint()
            yield acquired

    def generate(self, model: DiffusionModel, request: GenerationRequest, embeddings: Mapping[str, Vectors]) -> Image.Image:
        """Generate an image with the WebUI's own sampling and a model that `open_model` returned. Call it within `lock`."""
        return generation.generate(model, request, embeddings, SAMPLING)

    def embeddings_changed(self) -> None:
        """Read the folder again: the WebUI does not notice an overwritten file. Call it within `lock`."""
        if sd_models.model_data.sd_model is not None:  # otherwise they are read when a checkpoint is loaded
            model_hijack.embedding_db.load_textual_inversion_embeddings(force_reload=True)
            cards.update(model_hijack.embedding_db.word_embeddings)
        generation.forget_conditioning()


_: type[Host] = WebuiHost


def _check_settings() -> None:
    """Raise ModelError for settings that rule out training, before a checkpoint is loaded."""
    if forks.setting("lowvram"):
        message = "With --lowvram the U-Net is never whole on the GPU, so it cannot be trained: start with --medvram."
        raise ModelError(message)
    if forks.setting("use_old_emphasis_implementation"):
        message = "The old emphasis implementation is not supported: turn it off in Settings, Compatibility."
        raise ModelError(message)


def _check_whole(sd_model: Any) -> None:
    """Raise ModelError while the WebUI loads a checkpoint or VAE: it takes the loaded one apart for that. Forks do not."""
    if model_hijack.clip is None and not forks.is_fork(sd_model):
        message = "A checkpoint or VAE is being loaded: wait until it is loaded."
        raise ModelError(message)


def _chosen() -> sd_models.CheckpointInfo:
    try:
        return sd_models.select_checkpoint()
    except FileNotFoundError as error:
        message = f"There is no checkpoint to train on: put one into {paths.models_path}/Stable-diffusion and refresh."
        raise ModelError(message) from error


def _prepare_checkpoint() -> None:
    """Load the chosen checkpoint and move it to the device, as the WebUI does before each image."""
    data = sd_models.model_data
    if not sd_models.checkpoints_list or data.get_sd_model() is None:
        return  # open_model raises if one is needed
    sd_models.reload_model_weights()
    sd_models.send_model_to_device(data.sd_model)  # the user may have unloaded it
    sd_models.apply_token_merging(data.sd_model, 0)
    database = model_hijack.embedding_db
    if database.expected_shape != database.get_expected_shape():  # a model of another family was restored from RAM
        database.load_textual_inversion_embeddings(force_reload=True)
    sd_unet.apply_unet()


def _check_computing(sd_model: Any) -> None:
    """Raise ModelError for a loaded checkpoint that cannot be trained through."""
    if sd_unet.current_unet is not None:
        message = "The setting SD Unet replaces the U-Net by one that cannot be trained: set it to None and generate once."
        raise ModelError(message)
    if devices.fp8 or forks.is_stored_in_8_bits(sd_model):
        message = "The checkpoint is stored in 8 bits, which is too coarse for training: set FP8 weight to Disable."
        raise ModelError(message)
    dtype = forks.unet_dtype(sd_model, devices.dtype_unet)
    if torch.device(devices.device).type == "cpu" and dtype == torch.float16:
        message = "Training in half precision does not work on a CPU: start the WebUI with --no-half."
        raise ModelError(message)


def _clear_networks() -> None:
    """Deactivate all extra networks, also those that settings add to every prompt."""
    settings = shared.opts.data
    always = {name: settings[name] for name in ("sd_lora", "sd_hypernetwork") if name in settings}
    try:
        settings.update(dict.fromkeys(always, "None"))
        extra_networks.activate(processing.StableDiffusionProcessingTxt2Img(), {})
    finally:
        settings.update(always)
    _unmerge_networks(shared.sd_model)
    forks.take_networks(shared.sd_model)


def _unmerge_networks(sd_model: torch.nn.Module) -> None:
    """Remove LoRAs from the weights now: the WebUI would do it when a layer computes, and weights may be offloaded then."""
    merged = [each for each in sd_model.modules() if getattr(each, "network_current_names", ())]
    if merged:
        networks = importlib.import_module("networks")  # of the WebUI's extension Lora, which has merged them

        with torch.no_grad():
            for each in merged:
                networks.network_apply_weights(each)
