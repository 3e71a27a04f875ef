"""Every option of a training run, declared once: command line, page, settings file and README derive from it.

Knows nothing of any of them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ti_trainer.errors import ConfigError
from ti_trainer.options import Option, option, options_of
from ti_trainer.training.guidance import GuidanceScale
from ti_trainer.training.schedule import Schedule

SECTIONS = {
    "training": "Training",
    "images": "Images",
    "prompts": "Prompts",
    "optimiser": "Optimiser",
    "dreamartist": "DreamArtist",
    "previews": "Previews and copies",
    "advanced": "Advanced",
}


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
        "Sentences to put the word into, by the name of their file; [name] becomes the embedding, [filewords] the caption.",
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
    buckets: bool = option(
        False,
        "Each image keeps its shape, at about the pixels of width and height, cut by the little that it is longer than the "
        "nearest shape in steps of 64 px; images of the same shape share batches.",
        label="Use aspect-ratio buckets",
        section="images",
    )
    use_alpha_weight: bool = option(
        False,
        "Transparent parts of an image count less, in proportion.",
        label="Use PNG alpha channel as loss weight",
        section="images",
    )
    mask_outside: float = option(
        0.0,
        "How much counts what a mask leaves out: 0 nothing, 1 as much as what it marks. Masks are grey pictures: in a mask "
        "folder, or beside a.png as a-masklabel.png or a_att.png (brighter than the middle counts up to five times).",
        label="Weight outside the mask",
        section="images",
        low=0,
        high=1,
    )
    normalize_masks: bool = option(
        True,
        "A picture with a small mask teaches as much as one that counts all over. Off: as much as its mask is large.",
        label="Normalize masks",
        section="images",
    )
    repeats: int = option(
        1, "How often each image comes up in an epoch.", label="Repeats per epoch", section="images", low=1, high=10_000
    )
    prior_loss_weight: float = option(
        1.0,
        "How much regularisation images count: those of a data set file's folders that are of the class, not of the thing.",
        label="Prior loss weight",
        section="images",
        low=0,
        high=1000,
    )
    latent_sampling: Literal["once", "deterministic", "random"] = option(
        "once",
        "What stands for an image: one sample of the VAE kept for the run, its mean, or a new sample each time.",
        label="Choose latent sampling method",
        section="images",
    )

    shuffle_tags: bool = option(
        False,
        "Put the comma-separated parts of a caption in a new order each time.",
        label="Shuffle tags by ',' when creating prompts.",
        section="prompts",
    )
    tag_dropout: float = option(
        0.0,
        "Leave each tag of a caption out with this probability.",
        label="Drop out tags when creating prompts.",
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
        "Stop the text encoder this many layers before its end, less one; as 'Clip skip' when generating. For SD 1.x only: "
        "SD 2.x and SDXL always stop at the last layer but one.",
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

    negative: bool = option(
        False,
        "Train two embeddings: the word, and its negative (the word's name and -neg), for what it is not. Even one picture "
        "teaches a word then. Generate with the negative in the negative prompt, at about this CFG scale. Twice the time.",
        label="Train with DreamArtist",
        section="dreamartist",
    )
    train_cfg_scale: str = option(
        "3",
        "How far the word is pulled away from its negative in training: 3 to 5 for one picture, or from - to over the "
        "timesteps, such as 1.5-3:cos for many (shapes: linear, cos, cos2).",
        label="CFG scale in training",
        section="dreamartist",
    )
    negative_lr: float = option(
        1.0,
        "The negative embedding's learning rate, as a factor of the word's; it holds for all of a schedule.",
        label="Negative learning rate factor",
        section="dreamartist",
        low=0,
        high=100,
    )
    positive_filewords_only: bool = option(
        False,
        "The negative prompt is the template's line without the caption.",
        label="Positive filewords only",
        section="dreamartist",
    )
    preview_every: int = option(
        500,
        "Draw a preview every so many steps, 0 for never.",
        label="Save an image to log directory every N steps, 0 to disable",
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
    preview_sampler: str = option(
        "",
        "What draws previews, where there is a choice; empty takes the usual one.",
        label="Preview sampling method",
        section="previews",
    )
    preview_sampling_steps: int = option(
        20, "Steps of the sampler in a preview.", label="Preview sampling steps", section="previews", low=1, high=1000
    )
    preview_cfg_scale: float = option(
        5.0, "How strictly previews follow their prompt.", label="Preview CFG scale", section="previews", low=1, high=30
    )
    preview_width: int = option(
        0,
        "In pixels, a multiple of 8; 0 takes the width of training.",
        label="Preview width",
        section="previews",
        low=0,
        high=4096,
    )
    preview_height: int = option(
        0,
        "In pixels, a multiple of 8; 0 takes the height of training.",
        label="Preview height",
        section="previews",
        low=0,
        high=4096,
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
        label="Save a copy of embedding to log directory every N steps, 0 to disable",
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

    evaluate_every: int = option(
        0,
        "Measure the loss with the same noise every so many steps, 0 for never. It shows progress where the training loss "
        "only jumps about; once takes as long as about 30 steps of batch size 1.",
        label="Measure deterministic loss every N steps",
        section="previews",
        low=0,
        high=10_000_000,
    )

    precision: Literal["auto", "fp32", "fp16", "bf16"] = option(
        "auto",
        "Numbers the network computes with; the vectors are always fp32. auto: bf16 or fp16 on CUDA, fp32 elsewhere.",
        label="Precision",
        section="advanced",
    )
    prediction_type: Literal["auto", "epsilon", "v_prediction"] = option(
        "auto",
        "What the network tells: the noise, or v. auto: as the checkpoint says. Choose v_prediction for a model whose page "
        "calls it v-pred, if it is taken for epsilon.",
        label="Prediction type",
        section="advanced",
    )
    zero_terminal_snr: Literal["auto", "on", "off"] = option(
        "auto",
        "Whether the last timestep is pure noise; with v prediction only. auto: as the checkpoint says. Choose on for a "
        "model whose page speaks of ZTSNR, if it is not recognised.",
        label="Zero terminal SNR",
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
    save_optimizer: bool = option(
        True,
        "For an embedding in a .pt file, keep the optimizer's state beside it as the WebUI does; a run has its own anyway.",
        label="Save optimizer state",
        section="advanced",
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
        for name in ("width", "height", "preview_width", "preview_height"):
            if getattr(self, name) % 8:
                message = (
                    f"{name}: found {getattr(self, name)}, expected a multiple of 8, since the VAE works on blocks of 8 px."
                )
                raise ConfigError(message, name)
        if self.buckets and self.do_not_resize:
            message = "Use aspect-ratio buckets: found on, expected off together with Do not resize images: buckets resize."
            raise ConfigError(message, "buckets")
        try:
            re.compile(self.filename_word_regex)
        except re.error as error:
            message = f"Filename word regex: found {self.filename_word_regex!r}, expected a regular expression ({error})."
            raise ConfigError(message, "filename_word_regex") from error
        self._check_schedule("learning_rate")
        if self.clip_grad != "disabled":
            self._check_schedule("clip_grad_limit")
        if self.negative:
            GuidanceScale.parse(self.train_cfg_scale)

    def _check_schedule(self, name: str) -> None:
        try:
            Schedule.parse(getattr(self, name), self.max_steps)
        except ConfigError as error:
            raise ConfigError(str(error), name) from error

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


def problems(values: Mapping[str, Any]) -> dict[str, str]:
    """What is wrong with each option, by its name, others being at their defaults: for a form that shows all at once."""
    found: dict[str, str] = {}
    for name, value in sorted(values.items(), key=lambda item: item[0] != "max_steps"):  # schedules depend on it
        context = {} if name == "max_steps" or "max_steps" in found else {"max_steps": values.get("max_steps", 1000)}
        if name == "clip_grad_limit":
            context["clip_grad"] = values.get("clip_grad", "disabled")
        if name == "buckets":
            context["do_not_resize"] = values.get("do_not_resize", False)
        try:
            TrainConfig.from_dict({**context, name: value})
        except ConfigError as error:
            if error.option in ("", name):
                found[name] = str(error)
    return found


def options() -> Iterator[Option]:
    """Every option in the order of its declaration."""
    return options_of(TrainConfig)
