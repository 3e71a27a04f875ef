"""Presets: named sets of options, built in or saved by the user."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ti_trainer.config.json_text import object_of
from ti_trainer.config.training import TrainConfig
from ti_trainer.errors import ConfigError
from ti_trainer.files import checked_name, write_bytes

FOLDER, ENDING = "presets", ".json"  # inside the folder of runs
MAX_BYTES = 1_000_000  # of a preset file; those that we write have a few hundred


@dataclass(frozen=True)
class Preset:
    """Options that differ from their defaults, and when to use them."""

    about: str
    values: Mapping[str, Any] = field(default_factory=dict)


BUILT_IN: dict[str, Preset] = {
    "person": Preset(
        "For a face or a character. Use 10 to 20 images with different light, clothes and backgrounds, and captions that "
        "describe everything but the person. Create 4 to 8 vectors with an init text such as 'woman' or 'man'.",
        {
            "template": "subject_filewords",
            "max_steps": 1000,
            "gradient_accumulation_steps": 2,
            "latent_sampling": "deterministic",
            "shuffle_tags": True,
            "tag_dropout": 0.1,
            "preview_prompt": "a photo of [name]",
            "preview_every": 100,
            "save_every": 100,
        },
    ),
    "style": Preset(
        "For a style. Use 20 to 100 images with different contents, and captions that describe the contents. Create 4 to 12 "
        "vectors with an init text such as 'painting' or 'line art'.",
        {
            "template": "style_filewords",
            "max_steps": 3000,
            "learning_rate": "0.005:500, 0.002:1500, 0.0005",
            "gradient_accumulation_steps": 4,
            "latent_sampling": "deterministic",
            "tag_dropout": 0.1,
            "preview_prompt": "a house by a lake, art by [name]",
            "preview_every": 250,
            "save_every": 250,
        },
    ),
    "object": Preset(
        "For an object. Use 5 to 10 images from different sides and on different backgrounds. Create 1 to 4 vectors with "
        "the kind of object as init text, such as 'toy' or 'teapot'.",
        {
            "template": "subject_filewords",
            "max_steps": 500,
            "latent_sampling": "deterministic",
            "preview_prompt": "a photo of [name] on a beach",
            "preview_every": 100,
            "save_every": 100,
        },
    ),
    "DreamArtist character": Preset(
        "For a character from one or a few images. Create 3 vectors, and 6 for the negative embedding, with an init text "
        "such as 'girl'; describe everything but the character in the captions. Watch the previews: the result is often "
        "good long before the last step. Generate at CFG scale 3 to 5, with the prompt repeated as negative prompt in which "
        "the negative embedding replaces the embedding. A mask keeps the background out, and a reconstruction loss of 1 "
        "adds detail but needs more GPU memory.",
        {
            "template": "subject_filewords",
            "max_steps": 8000,
            "learning_rate": "0.003",
            "latent_sampling": "deterministic",
            "negative": True,
            "prompt_preservation": 0.0,
            "train_cfg_scale": "3",
            "ema_rate": 0.97,
            "ema_every": 25,
            "preview_prompt": "a photo of [name]",
            "preview_every": 500,
            "save_every": 500,
        },
    ),
    "DreamArtist style": Preset(
        "For a style from one or a few images. Create 3 vectors, and 6 for the negative embedding, with an init text such "
        "as 'painting'; describe the contents in the captions. It is usually good after 1500 to 2000 steps. Generate at CFG "
        "scale 5 to 7, with the prompt repeated as negative prompt in which the negative embedding replaces the embedding. "
        "For more than 20 images, train at a CFG scale of 1.5-3:cos.",
        {
            "template": "style_filewords",
            "max_steps": 2000,
            "learning_rate": "0.005",
            "latent_sampling": "deterministic",
            "negative": True,
            "prompt_preservation": 0.0,
            "train_cfg_scale": "5",
            "ema_rate": 0.97,
            "ema_every": 25,
            "preview_prompt": "a house by a lake, art by [name]",
            "preview_every": 250,
            "save_every": 250,
        },
    ),
}


def saved(folder: Path) -> list[str]:
    """Names of the saved presets. Only regular files count: reading a pipe might never end."""
    return sorted(path.stem for path in folder.glob(f"*{ENDING}") if not path.name.startswith(".") and path.is_file())


def save(folder: Path, name: str, config: TrainConfig) -> Path:
    """Save the options that differ from their defaults; ConfigError for an invalid name."""
    if checked_name(name) in BUILT_IN:
        message = f"The preset {name!r} is built in: choose another name."
        raise ConfigError(message)
    defaults = TrainConfig().to_dict()
    values = {key: value for key, value in config.to_dict().items() if value != defaults[key]}
    path = folder / f"{name}{ENDING}"
    write_bytes(path, json.dumps(values, indent=2, ensure_ascii=False).encode(errors="backslashreplace"))
    return path


def load(folder: Path, name: str) -> Preset:
    """Load a preset by name; ConfigError if it does not exist or cannot be read."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    if name not in saved(folder):
        message = f"There is no preset {name!r}; the presets are: {', '.join([*BUILT_IN, *saved(folder)])}."
        raise ConfigError(message)
    path = folder / f"{name}{ENDING}"
    try:
        with path.open("rb") as file:
            values = object_of(file.read(MAX_BYTES))
        TrainConfig.from_dict(values)
    except (OSError, ValueError, ConfigError) as error:
        message = f"The preset {path} cannot be read ({error}): expected a JSON file of options."
        raise ConfigError(message) from error
    return Preset("", values)
