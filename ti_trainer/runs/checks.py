"""The checks of a session before it starts: those that need no model, and those of the model and a run to resume."""

from __future__ import annotations

from pathlib import Path

from ti_trainer.config.training import TrainConfig
from ti_trainer.data.image_files import find_images
from ti_trainer.data.images import frame_of
from ti_trainer.data.plan import Captions, plan
from ti_trainer.data.prompts import Prompter, load_plain, load_template
from ti_trainer.errors import ConfigError
from ti_trainer.files import checked_length, entered_path
from ti_trainer.functional import optimizers
from ti_trainer.host import Host, ModelReference
from ti_trainer.model import DiffusionModel
from ti_trainer.runs.builders import prompter_of
from ti_trainer.runs.datasets import subsets_of
from ti_trainer.runs.integrity import Loaded, check_unchanged
from ti_trainer.runs.run_folder import Run
from ti_trainer.runs.teacher_lora import lora_file
from ti_trainer.training import discriminator
from ti_trainer.training.trials import check_starts, check_steps


def check_images(host: Host, images: Path) -> None:
    """Refuse a dataset without images."""
    for subset in subsets_of(host, images):
        find_images(subset.folder)


def check_options(host: Host, name: str, config: TrainConfig) -> None:
    """Refuse what can be refused before a model is loaded: the name, template, discriminator, LoRA and sampler."""
    checked_length(name)
    optimizers.check_available(config.optimizer)
    if config.discriminator:
        path = entered_path(config.discriminator)
        host.check_folder(path if path.is_dir() else path.parent)
        discriminator.check(path, torchscript=host.torchscript)
    lora_file(host, config)
    if config.preview_sampler and config.preview_sampler not in host.samplers:
        expected = f"expected one of {', '.join(host.samplers)}" if host.samplers else "expected none: leave it empty"
        message = f"Preview sampling method: found {config.preview_sampler!r}, {expected}."
        raise ConfigError(message, "preview_sampler")
    load_prompter(host, name, config)


def load_prompter(host: Host, name: str, config: TrainConfig) -> Prompter:
    """Read the template and make the prompter; ConfigError for a template that cannot be used."""
    folders = host.template_dirs
    template, plain = load_template(config.template, folders), load_plain(config.template, folders)
    return prompter_of(config, name, template, plain)


def check_dataset(host: Host, name: str, images: Path, config: TrainConfig, model: DiffusionModel) -> None:
    """Refuse image sizes, captions and prompts that do not fit the model."""
    frame_of(config, model.default_size_px)
    captions = Captions(load_prompter(host, name, config), config.filename_word_regex, config.filename_join_string)
    plan(subsets_of(host, images), model, captions, lambda message: None)


def check_model(host: Host, intended: ModelReference | None) -> None:
    """Refuse to train with another model than the one that a run is meant for; None: with any."""
    if intended is None or intended.is_same(chosen := host.chosen_model()):
        return
    message = (
        f"This run is meant for the model {intended}, and {chosen} is loaded: load {intended.name} and try again, or train "
        "it with the loaded model instead."
    )
    raise ConfigError(message, "model")


def check_resumed_model(resume: Run, model: str) -> None:
    """Refuse to continue a run with a model of another name than it was started with."""
    earlier = resume.settings().get("model", model)
    if earlier != model:
        message = f"This run was started with the model {earlier}, and {model} is loaded: choose {earlier} to resume."
        raise ConfigError(message)


def check_start(config: TrainConfig, model: DiffusionModel, loaded: Loaded, resume: Run | None, *, overwrite: bool) -> None:
    """Refuse to train or resume from a step or a model that does not fit, and to overwrite a changed embedding."""
    first, _ = loaded[0]
    if resume is None:
        check_starts(config, first)
        check_steps(first.name, first.step, config)
        return
    check_resumed_model(resume, model.name)
    check_steps(first.name, resume.step, config)
    if not overwrite:
        check_unchanged(resume, resume.load_state()[0], loaded)
