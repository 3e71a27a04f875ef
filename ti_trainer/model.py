"""The DiffusionModel interface: what training needs from a Stable Diffusion network, whatever library loaded it.

SD 1.x, SD 2.x, SDXL and inpainting models differ only in the implementations. B batch, C latent channels, H W latent height
and width, V vectors, D width of a text encoder's token embeddings, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import group_norm, interpolate

from ti_trainer.embedding import Embedding
from ti_trainer.errors import ConfigError, ModelError
from ti_trainer.functional.objective import PredictionType
from ti_trainer.lora import Lora
from ti_trainer.prompts import TokenizedPrompt

Compile = Literal["auto", "on", "off"]
MemoryMode = Literal["auto", "none", "offload-vae", "checkpointing", "8bit", "offload-text", "offload-all"]
Vectors = Mapping[str, Tensor]  # the vectors of one embedding by text encoder, each (V, D)


@dataclass(frozen=True)
class Conditioning:
    """Text conditioning of the U-Net: hidden states (B, T, width), and for SDXL the pooled state (B, width)."""

    hidden: Tensor
    pooled: Tensor | None = None


@dataclass(frozen=True)
class ImageConditioning:
    """Conditioning of the U-Net on images, besides text; models that do not use it ignore it.

    `sizes` (B, 6) float32 is SDXL's size and crop conditioning (arXiv:2307.01952, 2.2) in px: original height and width, top
    and left of the crop in the resized image, target height and width. `masked` (B, 1 + C, H, W) is for inpainting models:
    the mask, 1 where they paint, and the latents of the image without that area.
    """

    sizes: Tensor
    masked: Tensor | None = None

    def of(self, rows: slice) -> ImageConditioning:
        """The conditioning of some rows of the batch."""
        return ImageConditioning(self.sizes[rows], None if self.masked is None else self.masked[rows])

    def repeat(self, times: int) -> ImageConditioning:
        """The batch repeated, (B times, ...)."""
        if times == 1:
            return self
        masked = None if self.masked is None else self.masked.repeat(times, 1, 1, 1)
        return ImageConditioning(self.sizes.repeat(times, 1), masked)


@dataclass(frozen=True)
class ModelSpec:
    """The kind of a checkpoint, determined when it is opened; `str` gives a description for users."""

    family: str
    prediction_type: PredictionType = "epsilon"
    zero_terminal_snr: bool = False
    inpainting: bool = False

    def __str__(self) -> str:
        parts = [f"{self.family} inpainting" if self.inpainting else self.family]
        parts.append("v prediction" if self.prediction_type == "v_prediction" else "epsilon prediction")
        return ", ".join(parts + ["zero terminal SNR"] * self.zero_terminal_snr)


@dataclass(frozen=True)
class CrossAttention:
    """A layer of the U-Net that attends to the text: linear layers with `heads` heads side by side in their output."""

    query: nn.Module
    key: nn.Module
    value: nn.Module
    heads: int


class DiffusionModel(Protocol):
    """A loaded checkpoint. Latents are scaled as the U-Net expects them; pixels are (B, 3, 8 H, 8 W) in [-1, 1]."""

    @property
    def name(self) -> str:
        """The checkpoint's name, for users and for the metadata of embeddings."""
        ...

    @property
    def spec(self) -> ModelSpec:
        """The kind of the checkpoint."""
        ...

    @property
    def checkpoint_hash(self) -> str | None:
        """The WebUI's short hash of the checkpoint's file; None if it is not known."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the U-Net computes."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of the U-Net's activations."""
        ...

    @property
    def alphas_cumprod(self) -> Tensor:
        """(number of training timesteps,) on the device."""
        ...

    @property
    def widths(self) -> Mapping[str, int]:
        """D by text encoder."""
        ...

    @property
    def default_size_px(self) -> int:
        """Width and height of the images that the model was trained on."""
        ...

    @property
    def needs_loss_scaling(self) -> bool:
        """Whether gradients may underflow, since the U-Net computes in fp16."""
        ...

    def training(self) -> AbstractContextManager[None]:
        """Within it all weights are frozen and the network can be trained through; afterwards everything is restored."""
        ...

    def fit_memory(self, latent_pixels: int, decoded: int = 0, mode: MemoryMode = "auto") -> str:
        """Choose how to save memory in training steps on batches of this many latent pixels (B H W).

        `decoded`: how many latent pixels each step decodes at once, for a loss on pixels. `mode`: what the user chose.
        Returns a message for the user, empty if there was no choice.
        """
        ...

    def compile(self, when: Compile, steps: int, sizes: int, on_compile: Callable[[], None]) -> str:
        """Compile the U-Net for `steps` steps on images of `sizes` sizes, until the host's lock is released.

        Call it after `fit_memory`. `on_compile` is called whenever the next step takes much longer because of it. If it
        fails later, `reduce_memory` undoes it. Returns a message for the user, which may be empty.
        """
        ...

    def reduce_memory(self, error: Exception) -> str:
        """Save more memory, so that the step which failed with this error can be repeated.

        Returns a message for the user, or an empty one if nothing more can be done.
        """
        ...

    def tokenize(self, prompt: str, embeddings: Mapping[str, Vectors]) -> TokenizedPrompt:
        """The token ids of a prompt as the text encoder gets them, in chunks, and the positions of embeddings in them."""
        ...

    def token_text(self, token_id: int) -> str:
        """The text of a token, for users."""
        ...

    def token_piece(self, token_id: int) -> str:
        """A token as CLIP's vocabulary spells it: bytes as characters, `</w>` at the end of a word; "" for an unknown id."""
        ...

    def token_tables(self) -> dict[str, Tensor]:
        """(N, D) by text encoder: the embeddings of all N tokens, where and as they are stored; only to be read."""
        ...

    def token_embeddings(self, text: str) -> dict[str, Tensor]:
        """(m, D) by text encoder: the embeddings of a text's m tokens, for init text."""
        ...

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents' distribution, each (B, C, H, W) float32."""
        ...

    def encode_masked(self, pixels: Tensor, masks: Tensor | None) -> Tensor | None:
        """`ImageConditioning.masked` (B, 1 + C, H, W) of an inpainting model, None for all others.

        `masks` (B, 1, 8 H, 8 W) are above 0.5 where the model paints; None: everywhere.
        """
        ...

    def image_attention(self, pixels: Tensor) -> Tensor:
        """(H W, H W): the attention between the latent pixels of one image (1, 3, 8 H, 8 W) in the VAE's encoder.

        Rows sum to one. ModelError for a VAE without attention.
        """
        ...

    def encode_prompts(self, prompts: Sequence[str], embeddings: Mapping[str, Vectors]) -> Conditioning:
        """The conditioning of B prompts, in which embeddings' names stand for their vectors; differentiable in these."""
        ...

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, cond: Conditioning, images: ImageConditioning) -> Tensor:
        """The U-Net's prediction (B, C, H, W), of the noise or of v as `spec` says; timesteps (B,)."""
        ...

    def cross_attention(self) -> AbstractContextManager[Sequence[CrossAttention]]:
        """The U-Net's layers that attend to the text, in order. Within it `predict` calls their forward hooks.

        Their weights may be elsewhere, or in 8 bits, except while they compute.
        """
        ...

    def fit_lora(self, lora: Lora) -> str:
        """Find the layers that a LoRA changes; ConfigError, for `teacher_lora`, if there are none or their sizes differ.

        Returns a message for the user if parts of it are not used, otherwise an empty one.
        """
        ...

    def with_lora(self, lora: Lora, weight: float) -> AbstractContextManager[None]:
        """Within it U-Net and text encoders compute with this LoRA, without gradients; nothing of it is left afterwards."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels of latents, not clamped; use `decoding` for gradients through it."""
        ...

    def decoding(self) -> AbstractContextManager[Callable[[Tensor], Tensor]]:
        """Gives `decode`; within it the VAE stays on the device, for the backward pass."""
        ...


INPAINTING_CHANNELS = 9  # a U-Net's input: noisy latents, the mask, latents of the rest of the image


def masked_channels(
    encode_images: Callable[[Tensor], tuple[Tensor, Tensor]], pixels: Tensor, masks: Tensor | None
) -> Tensor:
    """`encode_masked` of an inpainting model; the masked area is grey, as in its training and in the WebUI."""
    mask = torch.ones_like(pixels[:, :1]) if masks is None else (masks > 0.5).to(pixels)
    latents, _ = encode_images(pixels * (1 - mask))
    return torch.cat([interpolate(mask.to(latents), latents.shape[-2:]), latents], 1)  # (B, 1 + C, H, W)


def attention_of(block: nn.Module, names: Sequence[str], encode: Callable[[], object]) -> Tensor:
    """`image_attention` of an attention block with one head, on what it gets as input while `encode` runs.

    `names` are those of the block's norm, query and key. ModelError if it has no such modules.
    """
    if not all(hasattr(block, name) for name in names):
        message = "This model's VAE has no attention in its encoder, so masks cannot be spread with it: paint them in full."
        raise ModelError(message)
    norm, query, key = (getattr(block, name) for name in names)
    inputs: list[Tensor] = []
    hook = block.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    try:
        encode()
    finally:
        hook.remove()
    normed = group_norm(inputs[0].float(), norm.num_groups, norm.weight.float(), norm.bias.float(), norm.eps)  # (1, c, H, W)
    states = normed[0].flatten(1).T  # (H W, c)

    def project(layer: Any) -> Tensor:
        weight: Tensor = layer.weight.float().flatten(1)  # the original code has 1 x 1 convolutions, (c, c, 1, 1)
        return states @ weight.T + layer.bias.float()

    return (project(query) @ project(key).T / states.shape[1] ** 0.5).softmax(1)  # (H W, H W)


def check_fits(model: DiffusionModel, embedding: Embedding) -> None:
    """Raise ConfigError if the embedding is for another model family."""
    if dict(model.widths) != embedding.widths:
        expected = ", ".join(f"{encoder} {width}" for encoder, width in model.widths.items())
        found = ", ".join(f"{encoder} {width}" for encoder, width in embedding.widths.items())
        message = (
            f"The embedding {embedding.name!r} is for {embedding.family} ({found}), but {model.name} is {model.spec.family} "
            f"({expected}): choose a checkpoint of the embedding's family, or create a new embedding."
        )
        raise ConfigError(message)
