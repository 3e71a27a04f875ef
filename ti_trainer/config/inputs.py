"""Options of a training run: how long to train, on what images and prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ti_trainer.config.options import option
from ti_trainer.functional.lr_scheduler import AUTO


@dataclass(frozen=True)
class InputOptions:
    """The first options of a TrainConfig, which checks them."""

    max_steps: int = option(
        1000,
        "Number of optimizer updates. 500 are usually enough for an object, 1000 for a person and 3000 for a style.",
        label="Max steps",
        section="training",
        low=1,
        high=10_000_000,
    )
    learning_rate: str = option(
        AUTO,
        "A number, a schedule such as '0.005:100, 1e-3:1000, 1e-5', or 'auto': a rate that fits the model and falls to 0. "
        "Each rate of a schedule applies until its step. Steps below 1 are fractions of the maximum, -1 is the end; "
        "training stops after the last stage.",
        label="Embedding Learning rate",
        section="training",
        numbers=True,
    )
    batch_size: int = option(
        1,
        "Images per forward pass, usually 1 to 8. Larger batches give steadier training but need more GPU memory.",
        label="Batch size",
        section="training",
        low=1,
        high=1024,
    )
    gradient_accumulation_steps: int = option(
        1,
        "Batches per update, usually 1 to 8. Has the effect of a larger batch without using more memory.",
        label="Gradient accumulation steps",
        section="training",
        low=1,
        high=1024,
    )
    template: str = option(
        "subject_filewords",
        "File of prompts to train with. [name] is replaced by the embedding, [filewords] by the image's caption.",
        label="Prompt template",
        section="training",
    )
    stop_when_done: bool = option(
        True,
        "Stop when the validation loss no longer improves, and keep the best step. Of 8 or more images, 1 in 8 is held out "
        "to measure it: turn this off to train on all images, and always to the last step.",
        label="Stop when done",
        section="training",
    )
    seed: int = option(
        0,
        "Random seed. The same seed, options and images give the same result.",
        label="Seed",
        section="training",
        low=0,
        high=2**32 - 1,
    )

    width: int = option(
        0,
        "Width in pixels, a multiple of 8. 0 uses the model's own size.",
        label="Width",
        section="images",
        low=0,
        high=4096,
    )
    height: int = option(
        0,
        "Height in pixels, a multiple of 8. 0 uses the model's own size.",
        label="Height",
        section="images",
        low=0,
        high=4096,
    )
    do_not_resize: bool = option(
        False,
        "Train on images at their own size, cropped to multiples of 8 px. Images of the same size are batched together.",
        label="Do not resize images",
        section="images",
    )
    buckets: bool = option(
        False,
        "Keep each image's aspect ratio, resized to about width x height pixels and cropped to steps of 64 px. Images of "
        "the same size are batched together.",
        label="Use aspect-ratio buckets",
        section="images",
    )
    use_alpha_weight: bool = option(
        False,
        "Weight the loss by the image's transparency: the more transparent a pixel, the less it counts.",
        label="Use PNG alpha channel as loss weight",
        section="images",
    )
    mask_outside: float = option(
        0.0,
        "Loss weight outside an image's mask: 0 ignores that area, 1 counts it fully. The mask of a.png is a grey image of "
        "the same name in a mask folder, or a-masklabel.png or a_att.png beside it.",
        label="Weight outside the mask",
        section="images",
        low=0,
        high=1,
    )
    normalize_masks: bool = option(
        True,
        "Scale each mask so that all images count equally. When off, an image counts in proportion to its masked area.",
        label="Normalize masks",
        section="images",
    )
    repeats: int = option(
        1,
        "How often each image is used per epoch.",
        label="Repeats per epoch",
        section="images",
        low=1,
        high=10_000,
    )
    prior_loss_weight: float = option(
        1.0,
        "Loss weight of regularization images, which a dataset file can list. 1 counts them as much as the others.",
        label="Prior loss weight",
        section="images",
        low=0,
        high=1000,
    )
    latent_sampling: Literal["once", "deterministic", "random"] = option(
        "once",
        "How to sample an image's latents from the VAE: once per run, the mean (deterministic), or a new sample each time.",
        label="Choose latent sampling method",
        section="images",
    )

    shuffle_tags: bool = option(
        False,
        "Shuffle the comma-separated tags of a caption each time it is used.",
        label="Shuffle tags by ',' when creating prompts.",
        section="prompts",
    )
    tag_dropout: float = option(
        0.0,
        "Probability of leaving out each tag of a caption, usually 0 to 0.3.",
        label="Drop out tags when creating prompts.",
        section="prompts",
        low=0,
        high=1,
    )
    filename_word_regex: str = option(
        "",
        "Regular expression that extracts a caption from the name of an image without a caption file; .+ takes the whole "
        "name. Empty uses names only in custom templates.",
        label="Filename word regex",
        section="prompts",
    )
    filename_join_string: str = option(
        " ",
        "Text between the words that the regular expression extracts.",
        label="Filename join string",
        section="prompts",
    )
    clip_skip: int = option(
        1,
        "Layer of the text encoder to use, counted from the last one; use the Clip skip that you generate with. Only for SD "
        "1.x: SD 2.x and SDXL always use the last but one.",
        label="Clip skip",
        section="prompts",
        low=1,
        high=12,
    )
