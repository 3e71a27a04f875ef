"""Options of a training run that decide what it shows and keeps, and how the network computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ti_trainer.config.options import option


@dataclass(frozen=True)
class OutputOptions:
    """The second part of a TrainConfig, which checks it."""

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
        5.0,
        "How strictly previews follow their prompt; with DreamArtist the scale of training counts.",
        label="Preview CFG scale",
        section="previews",
        low=1,
        high=30,
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
        "With each preview, make an image that carries the embedding and can be shared as one.",
        label="Save images with embedding in PNG chunks",
        section="previews",
    )

    evaluate_every: int = option(
        0,
        "Measure the loss with the same noise every so many steps, 0 for never. It shows progress where the training loss "
        "only jumps about; once takes as long as about 30 steps of batch size 1.",
        label="Measure validation loss every N steps",
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
    memory: Literal["auto", "none", "offload-vae", "checkpointing", "8bit", "offload-text", "offload-all"] = option(
        "auto",
        "What gives way where the GPU's memory is too little. auto: as little as will do, and the next thing if it runs out "
        "after all. card: nothing unless it runs out. vae-in-ram: the VAE waits in RAM. recompute: also, the network is "
        "computed twice, half as long again. 8bit: also, its weights are kept in 8 bits, nearly as exact. stream-text: "
        "instead, those of the text encoders wait in RAM and come block by block. stream: those of all, the least memory, "
        "and slow.",
        label="Memory",
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
    compile: Literal["auto", "on", "off"] = option(
        "auto",
        "Have PyTorch compile the network for the images' sizes: steps take less time then, but one of the first of each "
        "size (up to 8) takes a minute or more. If that fails, the run goes on without. auto: on CUDA with triton, if "
        "there are 4000 steps or more to come for each size.",
        label="Compile the network",
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
