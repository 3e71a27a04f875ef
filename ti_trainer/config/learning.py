"""Options of a training run that decide what is learned: of steps, images, prompts, optimizer and losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ti_trainer.config.options import option


@dataclass(frozen=True)
class LearningOptions:
    """The first part of a TrainConfig, which checks it."""

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
        numbers=True,
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
        "How much counts what a mask leaves out: 0 nothing, 1 as much as what it marks. Masks are grey images: in a mask "
        "folder, or beside a.png as a-masklabel.png or a_att.png (brighter than the middle counts up to five times).",
        label="Weight outside the mask",
        section="images",
        low=0,
        high=1,
    )
    normalize_masks: bool = option(
        True,
        "An image with a small mask teaches as much as one that counts all over. Off: as much as its mask is large.",
        label="Normalize masks",
        section="images",
    )
    repeats: int = option(
        1, "How often each image comes up in an epoch.", label="Repeats per epoch", section="images", low=1, high=10_000
    )
    prior_loss_weight: float = option(
        1.0,
        "How much regularisation images count: those of a dataset file's folders that are of the class, not of the thing.",
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
        "Make captions of file names where there is no caption file: this regular expression picks the words, .+ takes all. "
        "Empty: file names are captions only in a template of your own, if they say something.",
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
        "disabled", "Limit each number of the gradient, or its length.", label="Gradient Clipping", section="optimizer"
    )
    clip_grad_limit: str = option(
        "0.1",
        "The limit, or a schedule of it in the learning rate's grammar.",
        label="Gradient Clipping limit",
        section="optimizer",
        numbers=True,
    )

    trials: int = option(
        1,
        "So many words are trained side by side in one pass through the network, and the one whose validation loss is "
        "lowest in the end is kept. They see the same images, but differ in the noise and prompts that they see, and in "
        "what the next options say. The first one sees what a single one would. Previews and copies along the way are of "
        "the one that was best when last measured (Measure validation loss every N steps), until then of the first.",
        label="Trials at once",
        section="trials",
        low=1,
        high=64,
    )
    trial_learning_rates: str = option(
        "",
        "One per trial, repeated if there are fewer: '0.005, 0.01'. Separate schedules with ';': '0.005:100, 0.001; 0.01'. "
        "A trial keeps its last rate until the longest schedule ends. An empty entry means Embedding Learning rate.",
        label="Learning rates of the trials",
        section="trials",
        numbers=True,
    )
    trial_init_texts: str = option(
        "",
        "Init text of each trial, in the same order: 'cat; kitten'. An empty entry keeps the embedding as it is. Only for "
        "an embedding that has not been trained yet; a negative embedding keeps its own vectors.",
        label="Init texts of the trials",
        section="trials",
    )
    trial_vectors: str = option(
        "",
        "Number of vectors of each trial, in the same order: '1, 2, 4'. An empty entry means as many as the embedding has. "
        "Only for an embedding that has not been trained yet. The best trial replaces the embedding, with its own number.",
        label="Numbers of vectors of the trials",
        section="trials",
        numbers=True,
    )

    negative: bool = option(
        False,
        "Train two embeddings: the word, and its negative (the word's name and -neg), for what it is not. Even one image "
        "teaches a word then. Generate at about this CFG scale, the prompt once more as negative prompt, the negative in "
        "the word's place. Twice the time.",
        label="Train with DreamArtist",
        section="dreamartist",
    )
    train_cfg_scale: str = option(
        "3",
        "How far the word is pulled away from its negative in training: 3 to 5 for one image; for many, rising over the "
        "timesteps, such as 1.5-3:cos (shapes: linear, ln, cos, cos2).",
        label="CFG scale in training",
        section="dreamartist",
        numbers=True,
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
        "The negative prompt is the template's line without the caption. Generate so, too: with 'a photo of NAME-neg' and "
        "nothing else as negative prompt.",
        label="Positive filewords only",
        section="dreamartist",
    )
    ema_rate: float = option(
        0.0,
        "Keep a moving average of the vectors beside them, as copies of their own: 0.97 is of about the last 33 steps, 0.99 "
        "of 100; 0 keeps none. It is steadier than the vectors of one step.",
        label="EMA rate",
        section="dreamartist",
        low=0,
        high=0.9999,
    )
    ema_every: int = option(
        0,
        "The vectors themselves go on from their average each so many steps, in DreamArtist 25; 0: never. It needs an EMA "
        "rate.",
        label="EMA interval",
        section="dreamartist",
        low=0,
        high=10_000_000,
    )
    reconstruction_weight: float = option(
        0.0,
        "Also compare pixels: the image that the network has in mind, decoded, with the training image. 1 in "
        "DreamArtist, 0 is off. Sharper likeness; takes two to three times as long and more memory.",
        label="Reconstruction loss weight",
        section="pixels",
        low=0,
        high=100,
    )
    discriminator: str = option(
        "",
        "An image classifier of your own whose judgement is added to the loss: a folder of transformers with "
        "config.json and model.safetensors, or, where that was allowed, a TorchScript file, which can run any code.",
        label="Discriminator",
        section="pixels",
    )
    discriminator_class: int = option(
        1,
        "The class, counted from 0, that images shall be of.",
        label="Class of the discriminator",
        section="pixels",
        low=0,
        high=100_000,
    )
    discriminator_weight: float = option(
        0.1,
        "How much its judgement, 1 less the probability of that class, counts beside the other losses.",
        label="Discriminator weight",
        section="pixels",
        low=0,
        high=100,
    )
