"""Presets: options under a name. Those that the guides teach, and those that a user saved. Knows nothing of pages."""

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

FOLDER, ENDING = "presets", ".json"  # within the folder of runs
MOST_BYTES = 1_000_000  # of a file; ours have some hundred


@dataclass(frozen=True)
class Preset:
    """Options other than their defaults, and a word on when to take it."""

    about: str
    values: Mapping[str, Any] = field(default_factory=dict)


BUILT_IN: dict[str, Preset] = {
    "person": Preset(
        "A face or a character: 10 to 20 images with different light, clothes and backgrounds, captioned with all that is "
        "not the person. 4 to 8 vectors, init text such as 'woman' or 'man'.",
        {
            "template": "subject_filewords",
            "max_steps": 2000,
            "learning_rate": "0.005:300, 0.002:1000, 0.0005",
            "gradient_accumulation_steps": 2,
            "latent_sampling": "deterministic",
            "shuffle_tags": True,
            "tag_dropout": 0.1,
            "preview_prompt": "a photo of [name]",
            "preview_every": 200,
            "save_every": 200,
        },
    ),
    "style": Preset(
        "How images are made rather than what they show: 20 to 100 of them with different contents, captioned with what "
        "is to be seen. 4 to 12 vectors, init text such as 'painting' or 'line art'.",
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
        "A thing: 5 to 10 images from different sides and on different backgrounds. 1 to 4 vectors, init text: the kind "
        "of thing, such as 'toy' or 'teapot'.",
        {
            "template": "subject_filewords",
            "max_steps": 1000,
            "learning_rate": "0.005:300, 0.002",
            "latent_sampling": "deterministic",
            "preview_prompt": "a photo of [name] on a beach",
            "preview_every": 100,
            "save_every": 100,
        },
    ),
    "DreamArtist character": Preset(
        "A character from one image, or a few. Create it with 3 vectors and 6 of the negative, init text such as 'girl'; "
        "caption all that is not the character. Look at the previews: it is often good long before the last step, and "
        "copies are kept. Generate at CFG 3 to 5 with the prompt once more as negative prompt, the negative in the word's "
        "place. A mask (Preprocess, Paint masks) keeps the background out; reconstruction loss 1 brings out details, on "
        "cards that can take it.",
        {
            "template": "subject_filewords",
            "max_steps": 8000,
            "learning_rate": "0.003",
            "latent_sampling": "deterministic",
            "negative": True,
            "train_cfg_scale": "3",
            "ema_rate": 0.97,
            "ema_every": 25,
            "preview_prompt": "a photo of [name]",
            "preview_every": 500,
            "save_every": 500,
        },
    ),
    "DreamArtist style": Preset(
        "A style from one image, or a few. Create it with 3 vectors and 6 of the negative, init text such as 'painting'; "
        "caption what is to be seen. Good after 1500 to 2000 steps. Generate at CFG 5 to 7 with the prompt once more as "
        "negative prompt, the negative in the word's place. With more than 20 images train at a scale of 1.5-3:cos.",
        {
            "template": "style_filewords",
            "max_steps": 2000,
            "learning_rate": "0.005",
            "latent_sampling": "deterministic",
            "negative": True,
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
    """Names of the presets that were saved; pipes and such, which may never end, are none."""
    return sorted(path.stem for path in folder.glob(f"*{ENDING}") if not path.name.startswith(".") and path.is_file())


def save(folder: Path, name: str, config: TrainConfig) -> Path:
    """Keep what is not at its default; ConfigError for a name that will not do."""
    if checked_name(name) in BUILT_IN:
        message = f"The preset {name!r} is built in: choose another name."
        raise ConfigError(message)
    defaults = TrainConfig().to_dict()
    values = {key: value for key, value in config.to_dict().items() if value != defaults[key]}
    path = folder / f"{name}{ENDING}"
    write_bytes(path, json.dumps(values, indent=2, ensure_ascii=False).encode())
    return path


def load(folder: Path, name: str) -> Preset:
    """A preset by its name; ConfigError if there is none, or it cannot be read."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    if name not in saved(folder):
        message = f"There is no preset {name!r} (there are: {', '.join([*BUILT_IN, *saved(folder)])})."
        raise ConfigError(message)
    path = folder / f"{name}{ENDING}"
    try:
        with path.open("rb") as file:
            values = object_of(file.read(MOST_BYTES))
        TrainConfig.from_dict(values)
    except (OSError, ValueError, ConfigError) as error:
        message = f"The preset {path} cannot be read ({error}): expected a JSON file of options."
        raise ConfigError(message) from error
    return Preset("", values)
