"""The folders and settings of a WebUI, the same in AUTOMATIC1111's and its forks. Imported only inside a WebUI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules import paths, sd_samplers, shared

from ti_trainer.captioning.captioner import HostCaptioner
from ti_trainer.errors import ConfigError
from ti_trainer.files import is_within
from ti_trainer.host import ModelReference
from ti_trainer.hosts.webui import captioners

SETTINGS = {  # our option -> the WebUI's setting, which is used if the user has changed it
    "csv_every": "training_write_csv_every",
    "filename_word_regex": "dataset_filename_word_regex",
    "filename_join_string": "dataset_filename_join_string",
    "repeats": "training_image_repeats_per_epoch",
    "save_optimizer": "save_optimizer_state",
    "tensorboard": "training_enable_tensorboard",
}


@dataclass(frozen=True)
class WebuiSettings:
    """The part of Host that is the same in all WebUIs: folders and settings. The other part is in the classes made from it.

    Everything but `is_public` is looked up when it is used, since settings change while the WebUI runs.

    `is_public`: others than this computer's user reach the page, see `is_started_public`.
    """

    is_public: bool
    torchscript: bool = False  # users of the WebUI's endpoints may name any file

    @property
    def embeddings_dir(self) -> Path:
        """The WebUI's folder of embeddings."""
        return Path(shared.cmd_opts.embeddings_dir)

    @property
    def log_dir(self) -> Path:
        """As on the WebUI's Train tab, unless our setting names another; a relative one starts at its data folder."""
        return Path(paths.data_path) / (getattr(shared.opts, "ti_trainer_log_dir", "") or "textual_inversion")

    @property
    def template_dirs(self) -> Sequence[Path]:
        """The WebUI's folder of prompt templates, if it has one: some forks have removed theirs."""
        folder = getattr(shared.cmd_opts, "textual_inversion_templates_dir", None)
        return [Path(folder)] if folder and Path(folder).is_dir() else []

    @property
    def lora_dirs(self) -> Sequence[Path]:
        """The folder of the WebUI's extension for LoRAs, if there is one."""
        folder = getattr(shared.cmd_opts, "lora_dir", None)
        return [Path(folder)] if folder and Path(folder).is_dir() else []

    @property
    def samplers(self) -> Sequence[str]:
        """The samplers on the WebUI's own page."""
        return list(sd_samplers.visible_sampler_names())

    @property
    def face_models(self) -> Sequence[Path]:
        """The folder in which the WebUI's own focal point crop stored YuNet."""
        return [Path(paths.models_path) / "opencv"]

    @property
    def captioners(self) -> Mapping[str, HostCaptioner]:
        """The WebUI's interrogator and DeepDanbooru, if it has them."""
        return captioners.offered()

    @property
    def fixed(self) -> frozenset[str]:
        """What the WebUI decides. On a public page also the regular expression: matching can block the server for ever."""
        own = {"clip_skip", "precision"}
        return frozenset(own | {"filename_word_regex"} if self.is_public else own)

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Clip skip as for generating, and the settings for training that the user has changed."""
        opts, values = shared.opts, {"clip_skip": int(shared.opts.CLIP_stop_at_last_layers), "precision": "auto"}
        for name, setting in SETTINGS.items():
            label = opts.data_labels.get(setting)
            value = getattr(opts, setting, None)
            if label is not None and value != label.default:
                values[name] = type(label.default)(value)  # the settings page stores whole numbers as floats
        return values

    def check_folder(self, folder: Path) -> None:
        """ConfigError on a public page, for a folder that the WebUI does not show to its visitors."""
        if not self.is_public:
            return
        shown = (paths.data_path, *(shared.cmd_opts.gradio_allowed_path or ()))
        roots = list(dict.fromkeys(map(Path, shown)))
        if not any(is_within(folder, root) for root in roots):
            message = (
                f"The folder {folder} is outside the folders that this WebUI shows to visitors "
                f"({', '.join(map(str, roots))}): move it there, or start the WebUI with --gradio-allowed-path for it."
            )
            raise ConfigError(message)


def is_started_public() -> bool:
    """Whether the WebUI was started so that others reach it: it hides its folders, or refuses extensions' installation."""
    return bool(shared.cmd_opts.disable_extension_access or shared.cmd_opts.hide_ui_dir_config)


def reference_of(info: Any) -> ModelReference:
    """The checkpoint of a WebUI's CheckpointInfo; its hash only if the WebUI has computed it."""
    return ModelReference(str(info.model_name), str(info.filename), info.shorthash or "")
