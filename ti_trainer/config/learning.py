"""Options of a training run: optimizer, losses, trials and DreamArtist."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ti_trainer.config.inputs import InputOptions
from ti_trainer.config.options import option
from ti_trainer.functional.loss_weights import LOSS_WEIGHTINGS
from ti_trainer.functional.lr_scheduler import DECAYS
from ti_trainer.functional.optimizers import OPTIMIZERS


@dataclass(frozen=True)
class LearningOptions(InputOptions):
    """The options of a TrainConfig that follow those of its inputs."""

    optimizer: str = option(
        "adamw",
        "Optimizer. sphere keeps the vectors as long as those of the model's vocabulary, so that the rest of a prompt "
        "counts more; use a learning rate of 'auto' or about 0.03. adamw8bit needs the package bitsandbytes; prodigy "
        "needs prodigyopt and a learning rate of about 1.",
        label="Optimizer",
        section="optimizer",
        choices=OPTIMIZERS,
    )
    lr_scheduler: str = option(
        "constant",
        "Decay of the learning rate to 0 at the end of the run, on top of its schedule.",
        label="LR Scheduler",
        section="optimizer",
        choices=DECAYS,
    )
    lr_warmup_steps: int = option(
        0,
        "Steps over which the learning rate rises from 0, usually 0 to 10% of max steps.",
        label="LR warmup steps",
        section="optimizer",
        low=0,
        high=1_000_000,
    )
    clip_grad: Literal["disabled", "value", "norm"] = option(
        "disabled",
        "Limit each value of the gradient, or its norm.",
        label="Gradient Clipping",
        section="optimizer",
    )
    clip_grad_limit: str = option(
        "0.1",
        "The limit: a number, or a schedule as for the learning rate.",
        label="Gradient Clipping limit",
        section="optimizer",
        numbers=True,
    )
    loss_weighting: str = option(
        "none",
        "Weight of each timestep in the loss. min-snr counts nearly clean timesteps less, which often converges faster.",
        label="Loss weighting",
        section="optimizer",
        choices=LOSS_WEIGHTINGS,
    )
    snr_gamma: float = option(
        5.0,
        "Gamma of min-snr, usually 1 to 20. Lower values reduce the weight of more timesteps.",
        label="Min SNR gamma",
        section="optimizer",
        low=0.01,
        high=1000,
    )
    prompt_preservation: float = option(
        0.3,
        "Share of the samples that learn to leave the rest of a prompt as effective as it is: a phrase such as 'on a beach' "
        "is added, and is to change the image as it does with the init text. Use 0.5 with one to three images. Training "
        "takes 3% longer, and 10 to 40% in a short run or with hundreds of images. 0 is off.",
        label="Prompt preservation",
        section="optimizer",
        low=0,
        high=1,
    )

    trials: int = option(
        1,
        "Train N variants in parallel and keep the one with the lowest validation loss. They share the images but differ in "
        "noise, prompts and the next options; memory grows as with batch size.",
        label="Trials at once",
        section="trials",
        low=1,
        high=64,
    )
    trial_learning_rates: str = option(
        "",
        "Learning rate of each trial, such as '0.005, 0.01'; separate schedules with ';'. A short list is repeated, an "
        "empty entry means Embedding Learning rate.",
        label="Learning rate per trial",
        section="trials",
        numbers=True,
    )
    trial_init_texts: str = option(
        "",
        "Init text of each trial, separated by ';', such as 'cat; kitten'; an empty entry keeps the embedding as it is. "
        "Only for embeddings that have not been trained yet.",
        label="Init text per trial",
        section="trials",
    )
    trial_vectors: str = option(
        "",
        "Number of vectors of each trial, such as '1, 2, 4'; an empty entry keeps the embedding's number. Only for "
        "embeddings that have not been trained yet.",
        label="Vectors per trial",
        section="trials",
        numbers=True,
    )

    teacher_prompt: str = option(
        "",
        "Learn to mean the same as this prompt, instead of what the images show. Noise is still added to the images: use "
        "images that the model has generated from the prompt.",
        label="Learn from a prompt",
        section="teacher",
    )
    opposite_prompt: str = option(
        "",
        "Make the embedding a slider: (NAME:1) means the prompt that it learns from, and (NAME:-1) means this prompt.",
        label="Opposite prompt",
        section="teacher",
    )
    teacher_negative_prompt: str = option(
        "",
        "Also train NAME-neg, for the negative prompt: it learns to mean the same as this prompt, which says what images "
        "should avoid. Takes twice as long.",
        label="Negative prompt to learn from",
        section="teacher",
    )
    teacher_lora: str = option(
        "",
        "Learn what this LoRA does: the target is what the model predicts with it, given the prompt to learn from, which "
        "may be empty. A .safetensors file, or the name of one in the WebUI's LoRA folder.",
        label="Learn from a LoRA",
        section="teacher",
    )
    teacher_lora_weight: float = option(
        1.0,
        "Weight of the LoRA that it learns from, as in <lora:NAME:WEIGHT>; usually 0.5 to 1.",
        label="LoRA weight",
        section="teacher",
        low=-10,
        high=10,
    )

    negative: bool = option(
        False,
        "Also train a negative embedding, NAME-neg, for use in the negative prompt. Learns from as little as one image; "
        "takes twice as long.",
        label="Train with DreamArtist",
        section="dreamartist",
    )
    train_cfg_scale: str = option(
        "3",
        "CFG scale during training: 3 to 5 for one image. For many images it may rise over the timesteps, such as 1.5-3:cos "
        "(shapes: linear, ln, cos, cos2).",
        label="CFG scale in training",
        section="dreamartist",
        numbers=True,
    )
    negative_lr: float = option(
        1.0,
        "Learning rate of the negative embedding, as a factor of the embedding's.",
        label="Negative learning rate factor",
        section="dreamartist",
        low=0,
        high=100,
    )
    positive_filewords_only: bool = option(
        False,
        "Leave the caption out of the negative prompt. Generate likewise, with 'a photo of NAME-neg' as the whole negative "
        "prompt.",
        label="Positive filewords only",
        section="dreamartist",
    )
    ema_rate: float = option(
        0.0,
        "Also save a moving average of the vectors, which is steadier: 0.97 averages about 33 steps, 0.99 about 100. 0 is "
        "off.",
        label="EMA rate",
        section="dreamartist",
        low=0,
        high=0.9999,
    )
    ema_every: int = option(
        0,
        "Replace the vectors by their moving average every N steps, 25 in DreamArtist. 0 is never; needs an EMA rate.",
        label="EMA interval",
        section="dreamartist",
        low=0,
        high=10_000_000,
    )
    reconstruction_weight: float = option(
        0.0,
        "Weight of a pixel loss between the decoded estimate and the image: 0 is off, 1 as in DreamArtist. Gives a closer "
        "likeness; steps take two to three times as long and more memory.",
        label="Reconstruction loss weight",
        section="pixels",
        low=0,
        high=100,
    )
    discriminator: str = option(
        "",
        "Image classifier to add to the loss: a transformers folder with config.json and model.safetensors. TorchScript "
        "files work only where they are allowed, since they can run any code.",
        label="Discriminator",
        section="pixels",
    )
    discriminator_class: int = option(
        1,
        "Class that the images should belong to, counted from 0.",
        label="Class of the discriminator",
        section="pixels",
        low=0,
        high=100_000,
    )
    discriminator_weight: float = option(
        0.1,
        "Weight of the classifier's loss, which is 1 minus the probability of the class. Usually 0.01 to 1.",
        label="Discriminator weight",
        section="pixels",
        low=0,
        high=100,
    )
