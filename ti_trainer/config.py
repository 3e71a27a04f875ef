"""Every option of a training run, declared once: command line, page, settings file and README derive from it.

Knows nothing of any of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ti_trainer.errors import ConfigError
from ti_trainer.training.schedule import Schedule

SECTIONS = {
    "training": "Training",
    "images": "Images",
    "prompts": "Prompts",
    "optimiser": "Optimiser",
    "previews": "Previews and copies",
    "advanced": "Advanced",
}


def option(
    default: Any,
    help: str,
    *,
    label: str,
    section: str,
    low: float | None = None,
    high: float | None = None,
) -> Any:
    """A field of TrainConfig: its default, help in a sentence or two, the label that WebUI users know, inclusive bounds."""
    return dataclasses.field(
        default=default, metadata={"help": help, "label": label, "section": section, "low": low, "high": high}
    )


@dataclass(frozen=True)
class Option:
    """One option, ready to become a widget, a flag or a line of a table."""

    name: str
    type: type
    default: Any
    choices: tuple[str, ...]
    help: str
    label: str
    section: str
    low: float | None
    high: float | None

    @property
    def flag(self) -> str:
        """As written on the command line."""
        return "--" + self.name.replace("_", "-")

    def check(self, value: Any) -> None:
        """Raise ConfigError unless the value has the option's type, is among its choices and within its bounds."""
        if type(value) is not self.type and not (self.type is float and type(value) is int):
            self._refuse(value, f"a {self.type.__name__}")
        if self.choices and value not in self.choices:
            self._refuse(value, "one of " + ", ".join(self.choices))
        if self.low is not None and not value >= self.low:  # a NaN is neither above nor below
            self._refuse(value, f"at least {self.low}")
        if self.high is not None and not value <= self.high:
            self._refuse(value, f"at most {self.high}")

    def _refuse(self, value: Any, expected: str) -> None:
        message = f"{self.label} ({self.name}): found {value!r}, expected {expected}."
        raise ConfigError(message)


@dataclass(frozen=True)
class TrainConfig:
    """The options of one run. An instance is always valid: construction raises ConfigError otherwise."""

    max_steps: int = option(
        1000,
        "Updates of the vectors after which training ends. A few hundred show whether it works.",
        label="Max steps",
        section="training",
        low=1,
        high=10_000_000,
    )
    learning_rate: str = option(
        "0.005",
        "A number, or a schedule such as '0.005:100, 1e-3:1000, 1e-5': each rate holds until its step. A step below 1 is a "
        "fraction of the maximum, -1 means to the end; a run past the last stage ends.",
        label="Embedding Learning rate",
        section="training",
    )
    batch_size: int = option(
        1,
        "Images in one pass through the network. More is steadier and slower, and needs more memory.",
        label="Batch size",
        section="training",
        low=1,
        high=1024,
    )
    gradient_accumulation_steps: int = option(
        1,
        "Passes added up before each update: like a larger batch, without its memory.",
        label="Gradient accumulation steps",
        section="training",
        low=1,
        high=1024,
    )
    template: str = option(
        "subject_filewords",
        "A file, or the name of one that ships with us. [name] becomes the embedding, [filewords] the caption.",
        label="Prompt template",
        section="training",
    )
    seed: int = option(
        0,
        "The same seed, settings and images give the same result.",
        label="Seed",
        section="training",
        low=0,
        high=2**32 - 1,
    )

    width: int = option(
        0,
        "In pixels, a multiple of 8; 0 takes what the model was made for.",
        label="Width",
        section="images",
        low=0,
        high=4096,
    )
    height: int = option(
        0,
        "In pixels, a multiple of 8; 0 takes what the model was made for.",
        label="Height",
        section="images",
        low=0,
        high=4096,
    )
    do_not_resize: bool = option(
        False,
        "Train on images as they are, cut to multiples of 8 px; images of the same size share batches.",
        label="Do not resize images",
        section="images",
    )
    use_alpha_weight: bool = option(
        False,
        "Transparent parts of an image count less, in proportion.",
        label="Use PNG alpha channel as loss weight",
        section="images",
    )
    repeats: int = option(
        1, "How often each image comes up in an epoch.", label="Repeats per epoch", section="images", low=1, high=10_000
    )
    latent_sampling: Literal["once", "deterministic", "random"] = option(
        "once",
        "What stands for an image: one sample of the VAE kept for the run, its mean, or a new sample each time.",
        label="Latent sampling method",
        section="images",
    )

    shuffle_tags: bool = option(
        False,
        "Put the comma-separated parts of a caption in a new order each time.",
        label="Shuffle tags by ','",
        section="prompts",
    )
    tag_dropout: float = option(
        0.0,
        "Leave each tag of a caption out with this probability.",
        label="Drop out tags",
        section="prompts",
        low=0,
        high=1,
    )
    filename_word_regex: str = option(
        "",
        "Where an image has no .txt file its name is the caption; this regular expression picks the words of it.",
        label="Filename word regex",
        section="prompts",
    )
    filename_join_string: str = option(
        " ", "Put between the words that the regular expression found.", label="Filename join string", section="prompts"
    )
    clip_skip: int = option(
        1,
        "Stop the text encoder this many layers before its end, less one; as 'Clip skip' when generating.",
        label="Clip skip",
        section="prompts",
        low=1,
        high=12,
    )

    clip_grad: Literal["disabled", "value", "norm"] = option(
        "disabled", "Limit each number of the gradient, or its length.", label="Gradient Clipping", section="optimiser"
    )
    clip_grad_limit: str = option(
        "0.1",
        "The limit, or a schedule of it in the learning rate's grammar.",
        label="Gradient Clipping limit",
        section="optimiser",
    )

    preview_every: int = option(
        500,
        "Draw a preview every so many steps, 0 for never.",
        label="Save an image to log directory every N steps",
        section="previews",
        low=0,
        high=10_000_000,
    )
    preview_prompt: str = option(
        "a photo of [name]",
        "What previews show; empty takes the last prompt that was trained on.",
        label="Preview prompt",
        section="previews",
    )
    preview_negative_prompt: str = option(
        "", "What previews shall not show.", label="Preview negative prompt", section="previews"
    )
    preview_sampling_steps: int = option(
        20, "Steps of the sampler in a preview.", label="Preview sampling steps", section="previews", low=1, high=1000
    )
    preview_cfg_scale: float = option(
        7.0, "How strictly previews follow their prompt.", label="Preview CFG scale", section="previews", low=1, high=30
    )
    preview_seed: int = option(
        1,
        "The same for all previews, so that they can be compared.",
        label="Preview seed",
        section="previews",
        low=0,
        high=2**32 - 1,
    )
    save_every: int = option(
        500,
        "Keep a copy of the embedding every so many steps, 0 for none.",
        label="Save a copy of embedding to log directory every N steps",
        section="previews",
        low=0,
        high=10_000_000,
    )
    save_cards: bool = option(
        True,
        "With each preview, make a picture that carries the embedding and can be shared as one.",
        label="Save images with embedding in PNG chunks",
        section="previews",
    )

    precision: Literal["auto", "fp32", "fp16", "bf16"] = option(
        "auto",
        "Numbers the network computes with; the vectors are always fp32. auto: bf16 or fp16 on CUDA, fp32 elsewhere.",
        label="Precision",
        section="advanced",
    )
    csv_every: int = option(
        10,
        "A line in the loss file every so many steps, 0 for none.",
        label="Save CSV every N steps",
        section="advanced",
        low=0,
        high=10_000_000,
    )
    tensorboard: bool = option(
        False, "Also log for TensorBoard; needs the package tensorboard.", label="TensorBoard", section="advanced"
    )
    state_every: int = option(
        100,
        "Keep the state to resume from every so many steps, and at least as often as the next option says.",
        label="Save state every N steps",
        section="advanced",
        low=1,
        high=10_000_000,
    )
    state_every_s: int = option(
        60,
        "Keep the state to resume from after so many seconds.",
        label="Save state every N seconds",
        section="advanced",
        low=1,
        high=86_400,
    )

    def __post_init__(self) -> None:
        """Check every option by itself, then those that depend on each other."""
        for each in options():
            each.check(getattr(self, each.name))
        for name in ("width", "height"):
            if getattr(self, name) % 8:
                message = (
                    f"{name}: found {getattr(self, name)}, expected a multiple of 8, since the VAE works on blocks of 8 px."
                )
                raise ConfigError(message)
        Schedule.parse(self.learning_rate, self.max_steps)
        if self.clip_grad != "disabled":
            Schedule.parse(self.clip_grad_limit, self.max_steps)

    def to_dict(self) -> dict[str, Any]:
        """For the settings file."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Read what `to_dict` wrote; options that are not there have their defaults, unknown ones raise ConfigError."""
        unknown = sorted(set(values) - {each.name for each in options()})
        if unknown:
            message = (
                f"Unknown options: {', '.join(unknown)}. Were these settings saved by a newer version? Remove them to go on."
            )
            raise ConfigError(message)
        return cls(**values)


def options() -> Iterator[Option]:
    """Every option in the order of its declaration."""
    hints = get_type_hints(TrainConfig)
    for each in dataclasses.fields(TrainConfig):
        choices = get_args(hints[each.name]) if get_origin(hints[each.name]) is Literal else ()
        kind = str if choices else hints[each.name]
        yield Option(each.name, kind, each.default, choices, **each.metadata)
