"""Host over the running WebUI: its folders, settings, queue and loaded checkpoint. Imported only inside the WebUI."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from modules import (
    devices,
    extra_networks,
    lowvram,
    paths,
    processing,
    sd_emphasis,
    sd_models,
    sd_samplers,
    sd_unet,
    shared,
)
from modules.sd_hijack import model_hijack
from PIL import Image
from torch import Tensor

from ti_trainer.captioning.captioner import HostCaptioner
from ti_trainer.errors import ConfigError, ModelError
from ti_trainer.files import is_within
from ti_trainer.host import GenerationRequest, ModelOptions
from ti_trainer.hosts.webui import captioners, cards, generation, lease
from ti_trainer.hosts.webui.model import RuntimeSettings, WebuiModel
from ti_trainer.hosts.webui.model_spec import spec_of
from ti_trainer.hosts.webui.text import REMEMBERED, Emphasize, prompt_encoders
from ti_trainer.model import Vectors

SETTINGS = {  # our option -> the host's setting, which counts once somebody has changed it
    "csv_every": "training_write_csv_every",
    "filename_word_regex": "dataset_filename_word_regex",
    "filename_join_string": "dataset_filename_join_string",
    "repeats": "training_image_repeats_per_epoch",
    "save_optimizer": "save_optimizer_state",
    "tensorboard": "training_enable_tensorboard",
}


class WebuiHost:
    """All of it is looked up when asked for: settings change while we are there."""

    torchscript = False  # whoever reaches the WebUI may name any file to its endpoints

    @property
    def embeddings_dir(self) -> Path:
        """Where the host looks for embeddings."""
        return Path(shared.cmd_opts.embeddings_dir)

    @property
    def log_dir(self) -> Path:
        """As on the host's Train tab, unless our setting names another; relative ones start at its data folder."""
        return Path(paths.data_path) / (getattr(shared.opts, "ti_trainer_log_dir", "") or "textual_inversion")

    @property
    def template_dirs(self) -> Sequence[Path]:
        """The host's folder of prompt templates, if it is there."""
        folder = Path(shared.cmd_opts.textual_inversion_templates_dir)
        return [folder] if folder.is_dir() else []

    @property
    def samplers(self) -> Sequence[str]:
        """Those that the host's own page offers."""
        return [each.name for each in sd_samplers.visible_samplers()]

    @property
    def face_models(self) -> Sequence[Path]:
        """Where the WebUI's own focal point crop kept YuNet."""
        return [Path(paths.models_path) / "opencv"]

    @property
    def captioners(self) -> Mapping[str, HostCaptioner]:
        """The host's interrogator and DeepDanbooru, where it has them."""
        return captioners.offered()

    @property
    def is_public(self) -> bool:
        """Whether the page may be used by others than the owner of the computer."""
        return bool(shared.cmd_opts.disable_extension_access or shared.cmd_opts.hide_ui_dir_config)

    @property
    def fixed(self) -> frozenset[str]:
        """What the host decides; and a regular expression can keep a server busy for ever, so strangers may not give one."""
        own = {"clip_skip", "precision"}
        return frozenset(own | {"filename_word_regex"} if self.is_public else own)

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Clip skip as when generating; of the settings for training, those that are not as they came."""
        opts, values = shared.opts, {"clip_skip": int(shared.opts.CLIP_stop_at_last_layers), "precision": "auto"}
        for name, setting in SETTINGS.items():
            label = opts.data_labels.get(setting)
            value = getattr(opts, setting, None)
            if label is not None and value != label.default:
                values[name] = type(label.default)(value)  # the page gives floats for whole numbers
        return values

    def describe(self) -> str:
        """The loaded checkpoint, or else the chosen one; ModelError if it cannot be trained."""
        _check_settings()
        sd_model = sd_models.model_data.sd_model
        if sd_model is None:
            return f"{_chosen().model_name}, not loaded yet"
        _check_whole()
        spec = spec_of(sd_model, zero_terminal_snr=generation.samples_zero_terminal_snr())
        _check_computing()
        return f"{sd_model.sd_checkpoint_info.model_name} ({spec})"

    def open_model(self, options: ModelOptions | None = None) -> WebuiModel:
        """The checkpoint that is loaded; ModelError if it cannot be trained.

        Changes nothing of it, so that it can be asked at any time; it is made ready to compute with by `lock`.
        """
        options = options or ModelOptions(clip_skip=self.defaults["clip_skip"])
        if options.precision != "auto":
            found = f"Precision: found {options.precision}"
            message = f"{found}, expected auto: in the WebUI its own start options decide (--no-half)."
            raise ConfigError(message, "precision")
        _check_settings()
        _chosen()
        sd_model = sd_models.model_data.get_sd_model()  # loads it if that has not been tried yet
        if sd_model is None:
            message = "No checkpoint is loaded. Wait if one is being loaded, or choose one at the top of the page."
            raise ModelError(message)
        _check_whole()
        spec = spec_of(sd_model, options, zero_terminal_snr=generation.samples_zero_terminal_snr())
        _check_computing()
        device, opts = torch.device(devices.device), shared.opts
        texts = prompt_encoders(
            sd_model, device, _emphasis(opts.emphasis), options.clip_skip, clip_l_skip=opts.sdxl_clip_l_skip is True
        )
        around = RuntimeSettings(
            device=device,
            unet_dtype=devices.dtype_unet,
            autocast=devices.autocast,
            fp32_attention=opts.upcast_attn,
            vae_to_ram=opts.unload_models_when_training,
            clear_networks=_clear_networks,
            empty_device=lowvram.send_everything_to_cpu,
        )
        return WebuiModel(sd_model, spec, texts, around)

    @contextmanager
    def lock(self) -> Iterator[lease.WebuiTurn]:
        """Wait for the host's queue and hold it; the checkpoint that is chosen is loaded then."""
        with lease.taken() as ours:
            _make_ready()
            yield ours

    def check_folder(self, folder: Path) -> None:
        """ConfigError for a folder that is not the page's visitors' to read, where they may be anybody."""
        if not self.is_public:
            return
        shown = (paths.data_path, *(shared.cmd_opts.gradio_allowed_path or ()))
        roots = list(dict.fromkeys(map(Path, shown)))
        if not any(is_within(folder, root) for root in roots):
            message = (
                f"The folder {folder} is outside of what this WebUI shows to visitors ({', '.join(map(str, roots))}): move "
                "it there, or start the WebUI with --gradio-allowed-path and this folder."
            )
            raise ConfigError(message)

    def generate(self, model: WebuiModel, request: GenerationRequest, words: Mapping[str, Vectors]) -> Image.Image:
        """Generate an image with the host's own sampling. Call it within `lock`."""
        return generation.generate(model, request, words)

    def embeddings_changed(self) -> None:
        """Read the folder anew: the host overlooks a file that was overwritten. Call it within `lock`."""
        if sd_models.model_data.sd_model is not None:  # else they are read when one is loaded
            model_hijack.embedding_db.load_textual_inversion_embeddings(force_reload=True)
            cards.look()
        generation.forget_conditioning()


def _check_settings() -> None:
    """What can be refused before a checkpoint is loaded."""
    if shared.cmd_opts.lowvram:
        message = "With --lowvram the U-Net is never whole on the GPU, so it cannot be trained through: use --medvram."
        raise ModelError(message)
    if shared.opts.use_old_emphasis_implementation:
        message = "The old emphasis implementation is not supported: turn it off in Settings, Compatibility."
        raise ModelError(message)


def _check_whole() -> None:
    """While the host reads another checkpoint or VAE, the one that it has is taken apart."""
    if model_hijack.clip is None:
        message = "A checkpoint or VAE is being loaded: wait until it is there."
        raise ModelError(message)


def _chosen() -> sd_models.CheckpointInfo:
    try:
        return sd_models.select_checkpoint()
    except FileNotFoundError as error:
        message = f"There is no checkpoint to train on: put one into {paths.models_path}/Stable-diffusion and refresh."
        raise ModelError(message) from error


def _make_ready() -> None:
    """As the host does before each image: the checkpoint that is chosen is loaded, and where it computes."""
    data = sd_models.model_data
    if not sd_models.checkpoints_list or data.get_sd_model() is None:
        return  # who needs one will be told by open_model
    sd_models.reload_model_weights()
    sd_models.send_model_to_device(data.sd_model)  # it may have been unloaded by hand
    sd_models.apply_token_merging(data.sd_model, 0)
    database = model_hijack.embedding_db
    if database.expected_shape != database.get_expected_shape():  # a model of another family came back from memory
        database.load_textual_inversion_embeddings(force_reload=True)
    sd_unet.apply_unet()


def _check_computing() -> None:
    """What is known once a checkpoint is loaded."""
    if sd_unet.current_unet is not None:
        message = "The U-Net is replaced by one that cannot be trained through: set SD Unet to None and generate once."
        raise ModelError(message)
    if devices.fp8:
        message = "The checkpoint is held in 8 bits, which is too coarse to train through: set FP8 weight to Disable."
        raise ModelError(message)
    if torch.device(devices.device).type == "cpu" and devices.dtype_unet == torch.float16:
        message = "Half precision on a CPU cannot be trained in: start the WebUI with --no-half."
        raise ModelError(message)


def _emphasis(name: str) -> Emphasize:
    option = sd_emphasis.get_current_option(name)

    @lru_cache(REMEMBERED)  # else the CPU waits for the GPU each time
    def on_device(multipliers: tuple[float, ...], device: torch.device) -> Tensor:
        return torch.tensor([multipliers], device=device)

    def emphasize(hidden: Tensor, ids: Sequence[int], multipliers: Sequence[float]) -> Tensor:
        emphasis = option()
        emphasis.tokens = [list(ids)]
        emphasis.multipliers = on_device(tuple(multipliers), hidden.device)
        emphasis.z = hidden
        emphasis.after_transformers()
        return emphasis.z

    return emphasize


def _clear_networks() -> None:
    """As for a prompt that names none; those that settings add to every prompt are left out too."""
    settings = shared.opts.data
    always = {name: settings[name] for name in ("sd_lora", "sd_hypernetwork") if name in settings}
    try:
        settings.update(dict.fromkeys(always, "None"))
        extra_networks.activate(processing.StableDiffusionProcessingTxt2Img(), {})
    finally:
        settings.update(always)
    _take_networks_out(shared.sd_model)


def _take_networks_out(sd_model: torch.nn.Module) -> None:
    """Out of the weights, now: the host's Lora does it when a layer computes next, and ours may lie elsewhere by then."""
    merged = [each for each in sd_model.modules() if getattr(each, "network_current_names", ())]
    if merged:
        import networks  # of the host's extension Lora, which has merged them

        with torch.no_grad():
            for each in merged:
                networks.network_apply_weights(each)
