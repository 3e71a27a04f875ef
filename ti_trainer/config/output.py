"""Options of a training run: previews, what is saved, and how the model computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ti_trainer.config.options import option

MAX_PREVIEW_PROMPTS = 8


@dataclass(frozen=True)
class OutputOptions:
    """The last options of a TrainConfig, which checks them."""

    preview_every: int = option(
        500,
        "Generate a preview every N steps. 0 is never.",
        label="Save an image to log directory every N steps, 0 to disable",
        section="previews",
        low=0,
        high=10_000_000,
    )
    preview_prompt: str = option(
        "a photo of [name]",
        "Prompt of the previews, or several, one in each line: each preview then shows one image per prompt, one above the "
        "other. Empty uses the last prompt that was trained on.",
        label="Preview prompt",
        section="previews",
        lines=MAX_PREVIEW_PROMPTS,
    )
    preview_negative_prompt: str = option(
        "", "Negative prompt of the previews.", label="Preview negative prompt", section="previews"
    )
    preview_sampler: str = option(
        "",
        "Sampler for previews, where there is a choice. Empty uses the default sampler.",
        label="Preview sampling method",
        section="previews",
    )
    preview_sampling_steps: int = option(
        20,
        "Sampling steps of a preview, usually 15 to 30.",
        label="Preview sampling steps",
        section="previews",
        low=1,
        high=1000,
    )
    preview_cfg_scale: float = option(
        5.0,
        "CFG scale of the previews, usually 5 to 8. DreamArtist uses the scale of its training instead.",
        label="Preview CFG scale",
        section="previews",
        low=1,
        high=30,
    )
    preview_width: int = option(
        0,
        "Width of previews in pixels, a multiple of 8. 0 uses the training width.",
        label="Preview width",
        section="previews",
        low=0,
        high=4096,
    )
    preview_height: int = option(
        0,
        "Height of previews in pixels, a multiple of 8. 0 uses the training height.",
        label="Preview height",
        section="previews",
        low=0,
        high=4096,
    )
    preview_seed: int = option(
        1,
        "Seed of all previews, so that they can be compared.",
        label="Preview seed",
        section="previews",
        low=0,
        high=2**32 - 1,
    )
    save_every: int = option(
        500,
        "Save a copy of the embedding every N steps. 0 is never.",
        label="Save a copy of embedding to log directory every N steps, 0 to disable",
        section="previews",
        low=0,
        high=10_000_000,
    )
    save_cards: bool = option(
        True,
        "Also save each preview as an image that contains the embedding and can be shared as one.",
        label="Save images with embedding in PNG chunks",
        section="previews",
    )

    evaluate_every: int = option(
        0,
        "Measure the loss with the same noise every N steps, usually 50 to 200; 0 is never. Shows progress more clearly "
        "than the training loss; each measurement takes as long as about 30 steps at batch size 1.",
        label="Measure validation loss every N steps",
        section="previews",
        low=0,
        high=10_000_000,
    )

    precision: Literal["auto", "fp32", "fp16", "bf16"] = option(
        "auto",
        "Number format of the model; the vectors are always fp32. auto uses bf16 or fp16 on CUDA, fp32 elsewhere.",
        label="Precision",
        section="advanced",
    )
    memory: Literal["auto", "none", "offload-vae", "checkpointing", "8bit", "offload-text", "offload-all"] = option(
        "auto",
        "How to save GPU memory; auto takes the cheapest measure that fits. From fastest to least memory: none, offload-vae "
        "(VAE in RAM), checkpointing (recompute activations, up to 50% slower), 8bit (8-bit weights), offload-text, "
        "offload-all (slow).",
        label="Memory",
        section="advanced",
    )
    prediction_type: Literal["auto", "epsilon", "v_prediction"] = option(
        "auto",
        "What the U-Net predicts: noise (epsilon) or velocity (v). auto reads it from the checkpoint; choose v_prediction "
        "if a v-pred model is taken for epsilon.",
        label="Prediction type",
        section="advanced",
    )
    zero_terminal_snr: Literal["auto", "on", "off"] = option(
        "auto",
        "Whether the last timestep is pure noise, for v-prediction models only. auto reads it from the checkpoint; choose "
        "on if a ZTSNR model is not recognized.",
        label="Zero terminal SNR",
        section="advanced",
    )
    compile: Literal["auto", "on", "off"] = option(
        "auto",
        "Compile the model with torch.compile: faster steps after a minute or more of compiling for each image size. auto "
        "is on for CUDA with triton and 4000 or more steps per size.",
        label="Compile the network",
        section="advanced",
    )
    csv_every: int = option(
        10,
        "Write the loss to a CSV file every N steps. 0 is never.",
        label="Save CSV every N steps",
        section="advanced",
        low=0,
        high=10_000_000,
    )
    tensorboard: bool = option(
        False,
        "Also write TensorBoard logs; needs the package tensorboard.",
        label="TensorBoard",
        section="advanced",
    )
    save_optimizer: bool = option(
        True,
        "Save AdamW's state beside an embedding in a .pt file, as the WebUI does. Runs can be resumed without it.",
        label="Save optimizer state",
        section="advanced",
    )
    state_every: int = option(
        100,
        "Save the state for resuming at least every N steps.",
        label="Save state every N steps",
        section="advanced",
        low=1,
        high=10_000_000,
    )
    state_every_s: int = option(
        60,
        "Save the state for resuming at least every N seconds.",
        label="Save state every N seconds",
        section="advanced",
        low=1,
        high=86_400,
    )
